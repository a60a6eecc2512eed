// The only script on a page before a piece is come to or asked for. It is no module, so that the
// page plays from file:// too. A piece's own script calls mnlibPlay.ready(name, mount, data).
"use strict";

(() => {
  const folder = new URL(".", document.currentScript.src);
  const pieces = new Map(); // name → promise of { mount, data }
  const arrived = new Map(); // name → function that keeps the promise

  window.mnlibPlay = {
    folder, // where a piece finds further files, by new URL("file", mnlibPlay.folder)
    ready: (name, mount, data) => arrived.get(name)({ mount, data }),
  };

  // Add an element to the head that fetches something; resolve once it is there.
  function fetched(element) {
    return new Promise((resolve, reject) => {
      element.onload = resolve;
      element.onerror = () => reject(new Error("its files could not be loaded"));
      document.head.append(element);
    });
  }

  let style;
  function load(name) {
    if (!pieces.has(name)) {
      const link = document.createElement("link");
      Object.assign(link, { rel: "stylesheet", href: new URL("play.css", folder) });
      style ??= fetched(link);
      const script = document.createElement("script");
      script.src = new URL(`${name}.js`, folder);
      const ready = new Promise((resolve) => arrived.set(name, resolve));
      const piece = Promise.all([style, fetched(script)]).then(() => ready);
      piece.catch(() => { pieces.delete(name); style = undefined; }); // so that it can be tried again
      pieces.set(name, piece);
    }
    return pieces.get(name);
  }

  // Put the piece into its container, over what stands there without scripts.
  async function start(container, button) {
    if (container.dataset.state === "loading" || container.dataset.state === "on") return;
    container.dataset.state = "loading";
    const name = container.id.replace("play-", "");
    const stage = document.createElement("div");
    stage.className = "mnlib-play-stage";
    stage.setAttribute("role", "group");
    stage.setAttribute("aria-label", container.querySelector(".rubric").textContent);
    try {
      const { mount, data } = await load(name);
      const focused = document.activeElement === button;
      mount(stage, data);
      button.parentElement.replaceWith(stage);
      container.dataset.state = "on"; // from here on the style hides the table and the sentence
      if (focused) stage.querySelector("input, select, button")?.focus();
    } catch (error) {
      container.dataset.state = "failed";
      button.nextSibling.textContent = ` This piece did not start: ${error.message}.`;
      console.error(error);
    }
  }

  for (const container of document.querySelectorAll(".mnlib-play")) {
    const line = document.createElement("p");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Play";
    const message = document.createElement("span");
    message.setAttribute("role", "status");
    line.append(button, message);
    container.querySelector(".rubric").after(line);
    button.onclick = () => start(container, button);
    if (!window.IntersectionObserver) continue;
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        start(container, button);
      }
    }, { rootMargin: "100px" });
    observer.observe(container);
  }
})();
