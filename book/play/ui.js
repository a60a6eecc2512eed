// What the pieces share: elements, dials that refuse what cannot be meant, tables, numbers.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "polyline", "title"]);

// An element with attributes and children: make("p", { class: "x" }, "text").
export function make(tag, attributes = {}, ...children) {
  const element = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

let count = 0;
// Each piece has this module to itself, and so a count of its own.
const mine = Math.random().toString(36).slice(2);
// An id that no other element of the page has.
export function unique() {
  count += 1;
  return `mnlib-play-${mine}-${count}`;
}

// The number in a text, or an error that says what is allowed.
export function parsed(text, { min, max, whole = false }) {
  const value = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(value)) throw new RangeError(`“${text}” is no number: give ${min} to ${max}`);
  if (value < min || value > max) throw new RangeError(`${text} is out of range: give ${min} to ${max}`);
  if (whole && !Number.isInteger(value)) throw new RangeError(`${text} is not whole: give ${min} to ${max}`);
  return value;
}

// A number that can be turned (a range) or typed (a field); what cannot be meant is refused with a
// message and leaves the value as it was. With `values` the range goes through that list instead.
export function dial({ label, value, min, max, step = 1, whole = false, values }, change) {
  const id = unique();
  const turned = make("input", values
    ? { type: "range", id, min: 0, max: values.length - 1, step: 1 }
    : { type: "range", id, min, max, step });
  const typed = make("input", { type: "text", inputmode: "decimal", "aria-label": `${label}, typed`, size: 5 });
  const message = make("span", { class: "mnlib-play-error", id: unique(), role: "alert" });
  typed.setAttribute("aria-describedby", message.id);
  const element = make("div", { class: "mnlib-play-dial" },
    make("label", { for: id }, label), turned, typed, message);
  const accept = (text) => {
    try {
      value = parsed(text, { min, max, whole });
      message.textContent = "";
      typed.removeAttribute("aria-invalid");
      return true;
    } catch (error) {
      message.textContent = error.message;
      typed.setAttribute("aria-invalid", "true");
      return false;
    }
  };
  const turn = () => {
    const nearest = (best, v, i) => (Math.abs(v - value) < Math.abs(values[best] - value) ? i : best);
    turned.value = values ? values.reduce(nearest, 0) : value;
    turned.setAttribute("aria-valuetext", String(value));
  };
  turned.oninput = () => {
    accept(values ? String(values[turned.value]) : turned.value);
    typed.value = value;
    turned.setAttribute("aria-valuetext", String(value));
    change(value);
  };
  typed.oninput = () => { if (accept(typed.value)) { turn(); change(value); } };
  // leaving the field shows the value that holds
  typed.onblur = () => { accept(String(value)); typed.value = value; };
  const set = (given) => { value = given; typed.value = value; turn(); };
  set(value);
  return { element, set };
}

// A list to choose from: options are [value, text].
export function choice({ label, value, options }, change) {
  const select = make("select", { id: unique() },
    ...options.map(([v, text]) => make("option", { value: v }, text)));
  select.value = value;
  select.onchange = () => change(select.value);
  return make("div", { class: "mnlib-play-dial" }, make("label", { for: select.id }, label), select);
}

// A table whose body is filled again and again with rows of texts; the first cell heads its row.
export function table(columns, caption) {
  const body = make("tbody");
  const head = columns.map((text) => make("th", { scope: "col" }, text));
  const element = make("div", { class: "mnlib-play-table", tabindex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), body));
  const fill = (rows) => body.replaceChildren(...rows.map((row) => make("tr", {},
    ...row.map((text, i) => (i ? make("td", {}, text) : make("th", { scope: "row" }, text))))));
  return { element, fill };
}

// A sentence that screen readers read out when it changes, once the reader has stopped turning.
export function live() {
  const element = make("p", { role: "status", "aria-live": "polite", class: "mnlib-play-live" });
  let timer;
  const say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => { element.textContent = text; }, 300);
  };
  return { element, say };
}

// A number for a reader: a few digits, powers of ten for what is tiny or huge.
export function show(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) {
    return x.toExponential(digits - 2).replace("-", "−").replace("e+", "e");
  }
  return x.toFixed(digits).replace("-", "−");
}
