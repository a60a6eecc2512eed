/* What the pages do by themselves. Without it everything can still be read. */
"use strict";

const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

/* What is wider than its place scrolls there: by keyboard too, and faded where it goes on. */
const WIDE =
  ".bd-article :is(pre, div.math, .pst-scrollable-table-container, dt.sig, .mnlib-plain, .mnlib-figure)";

function fade(element) {
  const more = element.scrollLeft + element.clientWidth < element.scrollWidth - 2;
  element.classList.toggle("mnlib-more", more);
}

function watchWide() {
  for (const element of document.querySelectorAll(WIDE)) {
    const wide = element.scrollWidth > element.clientWidth + 1;
    if (wide && !element.classList.contains("mnlib-wide")) {
      element.addEventListener("scroll", () => fade(element), { passive: true });
      element.tabIndex = 0;
    } else if (!wide && element.classList.contains("mnlib-wide")) {
      element.tabIndex = -1;
    }
    element.classList.toggle("mnlib-wide", wide);
    fade(element);
  }
}

/* A click, or the enter key, enlarges a figure. */
function enlargeFigures() {
  const picture = make("img");
  const close = make("button", { type: "button", textContent: "Close" });
  const dialog = make("dialog", { className: "mnlib-large" }, close, make("div", { tabIndex: 0 }, picture));
  dialog.setAttribute("aria-label", "Figure, enlarged");
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  for (const image of document.querySelectorAll(".bd-article img")) {
    if (image.closest("a, button")) continue;
    const button = make("button", { type: "button", className: "mnlib-enlarge", title: "Enlarge" });
    image.replaceWith(make("div", { className: "mnlib-figure" }, button));
    button.append(image);
    button.addEventListener("click", () => {
      Object.assign(picture, { src: image.src, alt: image.alt, className: image.className });
      dialog.showModal();
    });
  }
}

/* On a phone a row of words becomes a card, whose lines need the names of the columns. */
function nameCells() {
  for (const table of document.querySelectorAll("table.mnlib-prose")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, i) => (cell.dataset.label = names[i]));
    }
  }
}

/* A ledger of more than a few rows can be filtered by verdict and by words. */
function filterLedgers() {
  for (const table of document.querySelectorAll("table.mnlib-ledger")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6 || !rows.every((row) => row.querySelector(".mnlib-chip"))) continue;
    const verdict = (row) => row.querySelector(".mnlib-chip").textContent;
    const select = make("select", {}, make("option", { value: "", textContent: "all" }));
    for (const name of new Set(rows.map(verdict))) {
      const many = rows.filter((row) => verdict(row) === name).length;
      select.append(make("option", { value: name, textContent: `${name} (${many})` }));
    }
    const words = make("input", { type: "search" });
    const count = make("output");
    const show = () => {
      for (const row of rows) {
        const has = row.textContent.toLowerCase().includes(words.value.toLowerCase());
        row.hidden = !has || (select.value && verdict(row) !== select.value);
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    };
    select.addEventListener("change", show);
    words.addEventListener("input", show);
    const place = table.closest(".pst-scrollable-table-container") ?? table;
    place.before(
      make("p", { className: "mnlib-filter" },
        make("label", {}, "verdict ", select), make("label", {}, "with the words ", words), count));
    show();
  }
}

/* A link to a place shows what stands there: the formula, the figure, the first lines. */
const fetched = {};
const pageAt = (url) =>
  (fetched[url] ??= fetch(url)
    .then((answer) => answer.text())
    .then((text) => new DOMParser().parseFromString(text, "text/html")));

async function excerpt(link) {
  const [url, anchor] = link.href.split("#");
  const here = url === location.href.split("#")[0];
  const target = (here ? document : await pageAt(url)).getElementById(anchor);
  if (!target?.closest(".bd-article")) return null;
  const section = target.matches("span") && !target.textContent ? target.parentElement : target;
  const parts = section.matches("section")
    ? [...section.querySelectorAll(":scope > :is(h1, h2, h3, h4), :scope > p:not(.mnlib-slides)")].slice(0, 2)
    : [section.closest("tr, li, dl") ?? section];
  const card = make("div", { className: "mnlib-preview" }, ...parts.map((part) => part.cloneNode(true)));
  card.setAttribute("aria-hidden", "true");
  for (const element of card.querySelectorAll(".headerlink")) element.remove();
  for (const element of card.querySelectorAll("[id], [tabindex]")) {
    element.removeAttribute("id");
    element.removeAttribute("tabindex");
  }
  card.inert = true;
  return card;
}

function previewLinks() {
  let card, timer;
  const hide = () => {
    clearTimeout(timer);
    card?.remove();
  };
  const show = (link) => {
    hide();
    timer = setTimeout(async () => {
      const found = await excerpt(link).catch(() => null);
      if (!found || !link.matches(":hover, :focus")) return;
      card = found;
      document.body.append(card);
      if (!card.querySelector("mjx-container")) await window.MathJax?.typesetPromise?.([card]);
      const at = link.getBoundingClientRect();
      const left = Math.min(at.left, document.documentElement.clientWidth - card.offsetWidth - 8);
      const below = at.bottom + card.offsetHeight + 8 < innerHeight;
      card.style.left = `${Math.max(8, left) + scrollX}px`;
      card.style.top = `${scrollY + (below ? at.bottom + 6 : Math.max(8, at.top - card.offsetHeight - 6))}px`;
    }, 250);
  };
  for (const link of document.querySelectorAll('.bd-article a.internal[href*="#"]')) {
    link.addEventListener("mouseenter", () => show(link));
    link.addEventListener("focus", () => show(link));
    link.addEventListener("mouseleave", hide);
    link.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

document.addEventListener("DOMContentLoaded", () => {
  enlargeFigures();
  nameCells();
  filterLedgers();
  previewLinks();
  for (const number of document.querySelectorAll("abbr.mnlib-recorded")) number.tabIndex = 0;
  new ResizeObserver(watchWide).observe(document.querySelector(".bd-article") ?? document.body);
});
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  watchWide();
});
