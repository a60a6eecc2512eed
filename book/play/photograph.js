// Chapter 8: the recorded MobileNetV3-Small looks at the reader's own photograph, which stays where
// it is. A photograph is read and resized as `mnlib classify` does.
import { action, breath, network, runtime } from "./ort.js";
import { heights, widths } from "./resize.js";
import { choice, make, table } from "./ui.js";

const SIDE = 224;
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

// The picture in a file as 224×224 RGB bytes; upright, and with its own colours, as Pillow has them.
export async function read(file) {
  let image;
  try {
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
    image = await createImageBitmap(file, options);
  } catch {
    throw new RangeError(`“${file.name}” is no picture that this browser can read: choose a JPEG or PNG file`);
  }
  const { width, height } = image;
  const rows = Math.max(1, Math.floor(2 ** 20 / width)); // by strips: a canvas has a largest size
  const canvas = make("canvas", { width, height: Math.min(rows, height) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const narrow = new Uint8Array(height * SIDE * 3);
  for (let y = 0; y < height; y += rows) {
    const n = Math.min(rows, height - y);
    context.clearRect(0, 0, width, n);
    context.drawImage(image, 0, y, width, n, 0, 0, width, n);
    narrow.set(widths(context.getImageData(0, 0, width, n).data, width, n, SIDE), 3 * SIDE * y);
  }
  image.close();
  return heights(narrow, SIDE, height, SIDE);
}

// The network's input: 3×224×224 floats, normalised.
export function normalised(rgb, { mean, std }) {
  const x = new Float32Array(rgb.length);
  const plane = rgb.length / 3;
  for (let i = 0; i < rgb.length; i += 1) {
    const c = i % 3;
    x[c * plane + (i - c) / 3] = (rgb[i] / 255 - mean[c]) / std[c];
  }
  return x;
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const exps = Array.from(logits, (v) => Math.exp(v - top));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}

// Of a class map, classes×h×w, how much more each place speaks for a class than for the mean class.
export function evidence(maps, classes, which) {
  const places = maps.length / classes;
  return Array.from({ length: places }, (_, p) => {
    let mean = 0;
    for (let c = 0; c < classes; c += 1) mean += maps[c * places + p] / classes;
    return maps[which * places + p] - mean;
  });
}

// What the network says of 224×224 RGB bytes: { logits, maps, gates0, … } as arrays of floats.
export async function ask(session, rgb, data) {
  const { Tensor } = await runtime();
  const x = new Tensor("float32", normalised(rgb, data), [1, 3, SIDE, SIDE]);
  const found = await session.run({ x });
  return Object.fromEntries(Object.entries(found).map(([name, value]) => [name, value.data]));
}

function drawPicture(canvas, rgb) {
  const pixels = new ImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i += 1) {
    pixels.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// Red where a place speaks for the class, blue where against, over the picture.
function drawMap(canvas, values) {
  const context = canvas.getContext("2d");
  const side = Math.sqrt(values.length);
  const limit = Math.max(...values.map(Math.abs)) || 1;
  context.clearRect(0, 0, SIDE, SIDE);
  values.forEach((value, p) => {
    context.fillStyle = `rgb(${value > 0 ? "178 24 43" : "33 102 172"} / ${0.75 * Math.abs(value) / limit})`;
    const [x, y] = [p % side, Math.floor(p / side)].map((i) => (i * SIDE) / side);
    context.fillRect(x, y, SIDE / side, SIDE / side);
  });
}

// A gate a column: the more of the colour, the wider open.
function strip(gates) {
  const canvas = make("canvas", { width: gates.length, height: 1, class: "mnlib-play-strip", "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  gates.forEach((gate, i) => {
    context.fillStyle = `rgb(0 114 178 / ${gate})`;
    context.fillRect(i, 0, 1, 1);
  });
  return canvas;
}

export function mount(stage, data) {
  const { classes } = data;
  const picture = make("canvas", { width: SIDE, height: SIDE });
  const over = make("canvas", { width: SIDE, height: SIDE });
  const view = make("div", { class: "mnlib-play-view", role: "img" }, picture, over);
  const shares = table(["class", "probability", ""], "What the network says");
  const modules = table(["gates", "mean", "closed", "open", "each of them"], "Its squeeze-and-excitation modules, first to last");
  let session;
  let answer;
  let which = 0;

  const look = () => {
    drawMap(over, evidence(answer.maps, classes.length, which));
    view.setAttribute("aria-label", `Your picture; red where it speaks for ${classes[which]}, blue where against`);
  };
  const chosen = choice(
    { label: "Where it sees", value: 0, options: classes.map((name, i) => [i, name]) },
    (value) => { which = Number(value); look(); },
  );
  const select = chosen.querySelector("select");

  const show = (rgb) => {
    const probabilities = softmax(answer.logits);
    which = probabilities.indexOf(Math.max(...probabilities));
    select.value = which;
    drawPicture(picture, rgb);
    look();
    shares.fill(classes.map((name, i) => [name, percent(probabilities[i]),
      make("div", { class: "mnlib-play-bar", style: `width: ${100 * probabilities[i]}%` })]));
    modules.fill(Object.keys(answer).filter((name) => name.startsWith("gates")).map((name) => {
      const gates = Array.from(answer[name]);
      const mean = gates.reduce((a, b) => a + b, 0) / gates.length;
      const of = (limit) => percent(gates.filter((gate) => gate === limit).length / gates.length);
      return [String(gates.length), mean.toFixed(2), of(0), of(1), strip(gates)];
    }));
    result.hidden = false;
    return `${classes[which]}, ${percent(probabilities[which])}`;
  };

  // One picture after another, in the order in which they were given; none stops those after it.
  let turn = Promise.resolve();
  const look_at = (file) => {
    turn = turn.then(async () => {
      try {
        if (!file) throw new RangeError("What came is no file: choose a picture");
        load.line.textContent = `Looking at ${file.name} …`;
        await breath();
        const rgb = await read(file);
        answer = await ask(session, rgb, data);
        load.line.textContent = `${file.name}: ${show(rgb)}.`;
      } catch (error) {
        result.hidden = true;
        load.line.textContent = `${error.message}.`;
      }
    });
  };

  const input = (text, attributes) => {
    const field = make("input", { type: "file", accept: "image/*", ...attributes });
    // nothing chosen leaves all as it is; the same file may be chosen again
    field.onchange = () => { if (field.files.length) look_at(field.files[0]); field.value = ""; };
    return make("label", { class: "mnlib-play-file" }, text, field);
  };
  const place = make("div", { class: "mnlib-play-drop", hidden: "" },
    input("Choose a picture, or drop it here: ", {}),
    input("Or take one: ", { capture: "environment" }));
  place.ondragover = (event) => { event.preventDefault(); place.classList.add("over"); };
  place.ondragleave = () => place.classList.remove("over");
  place.ondrop = (event) => {
    event.preventDefault();
    place.classList.remove("over");
    look_at(event.dataTransfer.files[0]);
  };

  const load = action("Load the network (20 MB)", async (say) => {
    say("Loading …");
    session = await network("photograph.onnx");
    load.button.hidden = true;
    place.hidden = false;
    place.querySelector("input").focus();
    say("Ready. Your picture is looked at here and sent nowhere.");
  });
  const result = make("div", { class: "mnlib-play-result", hidden: "" },
    make("div", {}, chosen, view), shares.element, modules.element);
  stage.append(make("p", {}, `${data.about}.`), load.button, place, load.line, result);
}
