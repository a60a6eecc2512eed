// Chapters 1, 2 and 7: what a convolution costs in each of its forms. The counts are those of
// mnlib.separable and mnlib.cost: weights without biases and norms, multiply-adds of one image.
import { choice, dial, live, make, table } from "./ui.js";

// The multiple of 8 nearest to a width, at least 8 and at least 90 % of it.
export function roundChannels(channels) {
  const rounded = Math.max(8, Math.floor(Math.trunc(channels + 4) / 8) * 8);
  return rounded < 0.9 * channels ? rounded + 8 : rounded;
}

// [parameters, multiply-adds] by form; throws RangeError for what no convolution has.
export function counts({ n_i, n_o, k, stride, alpha, resolution, expansion }) {
  const whole = { n_i, n_o, k, stride, resolution, expansion };
  for (const [name, value] of Object.entries(whole)) {
    if (!(Number.isInteger(value) && value >= 1)) {
      throw new RangeError(`${name} = ${value} is no whole number from 1 on`);
    }
  }
  if (k % 2 === 0) throw new RangeError(`k = ${k} is even, so that no padding keeps the size: give an odd k`);
  if (stride > 2) throw new RangeError(`stride = ${stride} is not that of an inverted residual: give 1 or 2`);
  if (!(alpha > 0 && Number.isFinite(alpha))) throw new RangeError(`α = ${alpha} is no positive number`);
  const [inner, outer] = alpha === 1 ? [n_i, n_o] : [roundChannels(n_i * alpha), roundChannels(n_o * alpha)];
  const taps = k * k;
  const out = Math.floor((resolution + 2 * Math.floor(k / 2) - k) / stride) + 1;
  const [before, after] = [resolution * resolution, out * out]; // positions of input and output
  const wide = expansion * inner;
  const expand = expansion === 1 ? 0 : inner * wide; // with nothing to expand the layer is left out
  return {
    channels: [inner, outer],
    out,
    shortcut: stride === 1 && inner === outer,
    rows: {
      regular: [inner * taps * outer, inner * taps * outer * after],
      depthwise_first: [taps * inner + inner * outer, (taps * inner + inner * outer) * after],
      pointwise_first: [inner * outer + taps * outer, inner * outer * before + taps * outer * after],
      inverted_residual: [
        expand + taps * wide + wide * outer,
        expand * before + (taps * wide + wide * outer) * after,
      ],
    },
  };
}

const grouped = (n) => n.toLocaleString("en-GB");
const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)}\u00a0%`;

export function mount(stage, { start, forms }) {
  const settings = { ...start };
  const result = table(
    ["form", "parameters", "share", "multiply-adds", "share"],
    "One layer in four forms",
  );
  const { element: line, say } = live();

  const update = () => {
    const { channels, out, shortcut, rows } = counts(settings);
    const [weights, macs] = rows.regular;
    result.fill(Object.entries(rows).map(([form, [own, work]]) => [
      forms[form], grouped(own), percent(own, weights), grouped(work), percent(work, macs),
    ]));
    const [inner, outer] = channels;
    say(`${inner} → ${outer} channels, ${settings.resolution}×${settings.resolution} → ${out}×${out} pixels. `
      + `Depthwise first keeps ${percent(rows.depthwise_first[1], macs)} of the multiply-adds; `
      + `the inverted residual, ${settings.expansion * inner} channels wide inside, takes `
      + `${percent(rows.inverted_residual[1], macs)} and has ${shortcut ? "a" : "no"} shortcut.`);
  };

  const dials = [
    { name: "n_i", label: "n_i, channels in", min: 1, max: 4096, whole: true, values: WIDTHS },
    { name: "n_o", label: "n_o, channels out", min: 1, max: 4096, whole: true, values: WIDTHS },
    { name: "k", label: "k, kernel side", options: [1, 3, 5, 7, 9, 11] },
    { name: "stride", label: "stride", options: [1, 2] },
    { name: "alpha", label: "α, width", min: 0.1, max: 4, values: [0.25, 0.35, 0.5, 0.75, 1, 1.25, 1.4, 2] },
    { name: "resolution", label: "resolution", min: 1, max: 1024, whole: true, values: SIDES },
    { name: "expansion", label: "expansion", min: 1, max: 16, whole: true },
  ];
  const controls = make("div", { class: "mnlib-play-controls" });
  for (const { name, ...options } of dials) {
    const change = (value) => { settings[name] = Number(value); update(); };
    const value = settings[name];
    const { label, options: listed } = options;
    controls.append(listed
      ? choice({ label, value, options: listed.map((n) => [n, n]) }, change)
      : dial({ ...options, value }, change).element);
  }
  stage.append(controls, result.element, line);
  update();
}

const WIDTHS = [1, 3, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 2048];
const SIDES = [1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 96, 112, 128, 160, 192, 224, 256, 384, 512];
