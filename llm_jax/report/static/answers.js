// Shows one question at a time: filters, buttons and the arrow keys.
(() => {
  "use strict";
  const section = document.getElementById("answers");
  const cards = [...document.querySelectorAll("#answers article.card")];
  if (!cards.length) return; // A page on one stage, or on a corpus, has no answers.
  const position = document.getElementById("position");
  const showAll = document.getElementById("show-all");
  const filters = [...section.querySelectorAll("[data-filter]")];
  const state = { filter: "", index: 0, all: false };

  const matching = () =>
    cards.filter((card) => !state.filter || card.dataset.tags.split(" ").includes(state.filter));

  function show() {
    const found = matching();
    state.index = Math.min(Math.max(state.index, 0), found.length - 1);
    for (const card of cards) card.hidden = true;
    if (state.all) for (const card of found) card.hidden = false;
    else found[state.index].hidden = false;
    position.textContent = state.all ? `${found.length}` : `${state.index + 1} / ${found.length}`;
    showAll.setAttribute("aria-pressed", String(state.all));
    for (const button of filters) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
    }
  }

  function move(by) {
    if (state.all) return;
    const n = matching().length;
    state.index = (state.index + by + n) % n;
    show();
  }

  for (const button of filters) {
    button.addEventListener("click", () => {
      state.filter = button.dataset.filter;
      state.index = 0;
      show();
    });
  }
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  showAll.addEventListener("click", () => {
    state.all = !state.all;
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target instanceof HTMLElement && event.target.closest("input, textarea")) return;
    const box = section.getBoundingClientRect();
    // The keys act only while the section is on the screen.
    if (box.top > innerHeight || box.bottom < 0) return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  addEventListener("beforeprint", () => cards.forEach((card) => (card.hidden = false)));
  addEventListener("afterprint", show);
  show();
})();
