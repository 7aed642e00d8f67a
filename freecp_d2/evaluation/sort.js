// Headings of .sortable tables sort their rows; what is no number comes last in a column of numbers.
for (const table of document.querySelectorAll("table.sortable")) {
  const [body] = table.tBodies;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].map((row) => {
        const text = row.cells[column].textContent.trim();
        return [row, text, parseFloat(text.replace("−", "-"))];
      });
      const numbers = rows.some(([, , number]) => !isNaN(number)) && !head.classList.contains("text");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numbers;
      const sign = up ? 1 : -1;
      rows.sort(([, a, x], [, b, y]) => {
        if (!numbers) return sign * a.localeCompare(b);
        return isNaN(x) - isNaN(y) || sign * (x - y) || 0;
      });
      body.append(...rows.map(([row]) => row));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
}
