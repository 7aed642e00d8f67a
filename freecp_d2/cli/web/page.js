// The page's own behaviour; Gradio calls it by its listeners in page.py.
window.freecp = (() => {
  let asked = null; // the picture and words of the request that runs
  let shown = null; // of the result that stands
  let now = null; // of the form
  let empty = false; // whether no result stands
  let cutAt = 50;

  const key = (picture, words) => JSON.stringify([picture ? picture.path : null, words]);
  const result = () => document.getElementById("result");

  function mark() {
    const old = !empty && now !== shown;
    document.getElementById("results").classList.toggle("old", old);
    document.getElementById("results").classList.toggle("failed", empty);
    const note = document.getElementById("note");
    note.classList.toggle("shown", old);
    note.textContent = old
      ? "The picture or the words have changed since: this result is of the old ones. Press Segment."
      : "";
  }

  function cut(percent) {
    cutAt = percent;
    document.documentElement.style.setProperty("--cut", `${percent}%`);
  }

  // Gradio puts things in place when it likes to, examples without names, and messages whose
  // head is a button around a button.
  new MutationObserver(() => {
    const range = result()?.querySelector("input[type=range]");
    if (range && range.value !== String(cutAt)) range.value = cutAt;
    document.querySelectorAll("#examples button").forEach((button, i) => {
      if (!button.ariaLabel) button.ariaLabel = `Example ${i + 1}`;
    });
    document.querySelectorAll(".toast-header[role]").forEach((head) => {
      head.removeAttribute("role");
      head.removeAttribute("tabindex");
    });
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      document.getElementById("segment").click();
    }
  });

  return {
    get ready() {
      return shown !== null;
    },
    cut,
    loaded(picture, words) {
      shown = now = key(picture, words);
    },
    changed(picture, words) {
      now = key(picture, words);
      mark();
    },
    asks(...inputs) {
      asked = now = key(inputs[0], inputs[1]);
      return inputs;
    },
    answered() {
      shown = asked;
      empty = false;
      mark();
      const { top } = result().getBoundingClientRect();
      if (top < 0 || top > 0.6 * window.innerHeight) {
        const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
        result().scrollIntoView({ behavior: calm ? "instant" : "smooth" });
      }
    },
    redrawn() {
      empty = false;
      mark();
    },
    failed() {
      empty = true;
      mark();
      const said = "<p class='empty'>Nothing to show: this request failed. Its message says why.</p>";
      return [said, "", "", ""];
    },
    save(base64) {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([bytes], { type: "application/zip" }));
      link.download = "freecp.zip";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      return null;
    },
  };
})();
