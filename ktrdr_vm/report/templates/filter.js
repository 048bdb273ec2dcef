"use strict";
// Shows the tasks whose text and state are asked for. Without it the page is whole.
(() => {
  const form = document.getElementById("filter");
  const words = form.elements.namedItem("words");
  const state = form.elements.namedItem("state");
  const shown = document.getElementById("shown");
  const tasks = Array.from(document.querySelectorAll("[data-state]"));
  const apply = () => {
    const wanted = words.value.toLowerCase();
    let count = 0;
    for (const task of tasks) {
      const fits = (!state.value || task.dataset.state === state.value) && (!wanted || task.textContent.toLowerCase().includes(wanted));
      task.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = count === tasks.length ? "" : `${count} of ${tasks.length} tasks`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== words) {
      event.preventDefault();
      words.focus();
    }
    if (event.key === "Escape") {
      form.reset();
      apply();
    }
  });
})();
