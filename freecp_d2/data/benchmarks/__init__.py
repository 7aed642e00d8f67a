"""The eight benchmarks of the paper: files, ids, words, and their place in Detectron2."""
