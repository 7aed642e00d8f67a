"""Is a vocabulary robust? Other names, distractors, and only the classes that are there.

A base method and FreeCP on it are given the same images with other words (`make robustness`).
"""
