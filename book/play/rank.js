// Chapters 2 and 3: a slice of a trained convolution, written as a sum of R separable blocks. The
// singular value decompositions are mnlib.separable's; here they are only summed up.
import { choice, dial, live, make, show, table } from "./ui.js";

// The sum of the first R blocks of a slice: kernels K×9 and mixing n×K give n×9.
export function sum({ kernels, mixing }, rank) {
  if (!(Number.isInteger(rank) && rank >= 0 && rank <= kernels.length)) {
    throw new RangeError(`R = ${rank} is out of range: give 0 to ${kernels.length}`);
  }
  return mixing.map((row) => kernels[0].map((_, j) => {
    let total = 0;
    for (let r = 0; r < rank; r += 1) total += row[r] * kernels[r][j];
    return total;
  }));
}

const size = (rows) => Math.sqrt(rows.flat().reduce((total, x) => total + x * x, 0));
export const minus = (a, b) => a.map((row, i) => row.map((x, j) => x - b[i][j]));

// ‖X − X̂‖ / ‖X‖ of a slice and the sum of its first R blocks.
export function error(slice, rank) {
  const whole = sum(slice, slice.kernels.length);
  return size(minus(whole, sum(slice, rank))) / (size(whole) || 1);
}

// Kernels as tiles of cells: orange above zero, blue below, the stronger the further from it.
function tiles(kernels, side, scale, columns, words) {
  const [width, height] = [side + 1, kernels[0].length / side + 1];
  const rows = Math.ceil(kernels.length / columns);
  const drawing = make("svg", {
    viewBox: `-0.5 -0.5 ${columns * width} ${rows * height}`, role: "img", "aria-label": words, class: "mnlib-play-tiles",
  });
  kernels.forEach((kernel, n) => {
    const [left, top] = [(n % columns) * width, Math.floor(n / columns) * height];
    drawing.append(make("rect", { x: left, y: top, width: side, height: height - 1, class: "mnlib-play-tile" }));
    kernel.forEach((value, j) => drawing.append(make("rect", {
      x: left + (j % side), y: top + Math.floor(j / side), width: 1, height: 1,
      class: value < 0 ? "mnlib-play-minus" : "mnlib-play-plus",
      "fill-opacity": Math.min(1, Math.abs(value) / scale).toFixed(3),
    })));
  });
  return drawing;
}

export function mount(stage, { network, layer, side, orders }) {
  const settings = { order: "depthwise_first", slice: 1, rank: 1 };
  const errors = table(["R", ...Object.values(orders).map(({ name }) => name)],
    `Relative error of the whole layer, ${layer} of ${network}`);
  const pictures = make("div", { class: "mnlib-play-pictures" });
  const { element: line, say } = live();

  const update = () => {
    const { name, reads, slices } = orders[settings.order];
    const slice = slices[settings.slice - 1];
    const whole = sum(slice, slice.kernels.length);
    const near = sum(slice, settings.rank);
    const scale = Math.max(...whole.flat().map(Math.abs)) || 1;
    const columns = Math.min(8, whole.length);
    const picture = (title, drawing) => make("figure", {}, make("figcaption", {}, title), drawing);
    pictures.replaceChildren(
      picture(`The slice: ${whole.length} kernels of ${reads} ${settings.slice}`, tiles(whole, side, scale, columns, "the kernels of the slice")),
      picture(`The sum of its first ${settings.rank} blocks`, tiles(near, side, scale, columns, "the kernels of the sum")),
      picture("What is left", tiles(minus(whole, near), side, scale, columns, "the kernels of the difference")),
      picture(settings.rank ? "The depthwise kernels of the blocks" : "No block",
        settings.rank ? tiles(slice.kernels.slice(0, settings.rank), side, 1, columns, "the depthwise kernels of the blocks") : ""),
    );
    errors.fill(orders[settings.order].errors.map((_, r) => [
      r === settings.rank ? `▸ ${r}` : String(r),
      ...Object.values(orders).map((order) => (r in order.errors ? show(order.errors[r]) : "")),
    ]));
    const own = error(slice, settings.rank);
    say(`Slice ${settings.slice}, ${name}, R = ${settings.rank} of ${slice.kernels.length}: the relative error is ${show(own)}, `
      + `so that ${show(100 * (1 - own * own), 1)}\u00a0% of the slice’s sum of squares are there. `
      + `The whole layer’s relative error is ${show(orders[settings.order].errors[settings.rank])}.`);
  };

  const { slices } = orders[settings.order];
  const change = (name) => (value) => { settings[name] = value; update(); };
  stage.append(
    make("div", { class: "mnlib-play-controls" },
      choice({ label: "order", value: settings.order, options: Object.entries(orders).map(([key, { name }]) => [key, name]) }, change("order")),
      dial({ label: "slice", min: 1, max: slices.length, whole: true, value: 1 }, change("slice")).element,
      dial({ label: "R, blocks", min: 0, max: slices[0].kernels.length, whole: true, value: 1 }, change("rank")).element),
    line, pictures, errors.element);
  update();
}
