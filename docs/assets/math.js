// Formulas arrive as \( ... \) and \[ ... \] in elements of class arithmatex; KaTeX, from this folder, draws them.
function drawMath() {
  for (const element of document.querySelectorAll(".arithmatex:not(.drawn)")) {
    const text = element.textContent.trim();
    element.classList.add("drawn");
    katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: false });
  }
}
document$.subscribe(drawMath);
