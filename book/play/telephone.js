// Chapter 7: networks timed in turns on the reader's device. What they compute means nothing (all
// weights of a layer are the same), but takes the time that it would with any other weights.
import { action, breath, network, runtime } from "./ort.js";
import { make, table } from "./ui.js";

const SHORTEST = 20; // ms that a turn lasts at least: a browser's clock is coarse
const LONGEST = 8000; // ms that a comparison may take
const TURNS = 25;
const FEWEST = 5;

// The q-quantile of numbers, between neighbours as NumPy takes it.
export function quantile(numbers, q) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

// Median, and the range of the middle 80 %.
export function spread(numbers) {
  return { median: quantile(numbers, 0.5), low: quantile(numbers, 0.1), high: quantile(numbers, 0.9) };
}

// What the redesign takes off a V3-Large with the old last stage, turn by turn: in ms, and in %.
export function saved([before, after, whole]) {
  const ms = before.map((b, i) => b - after[i]);
  return { ms: spread(ms), percent: spread(ms.map((d, i) => (100 * d) / (whole[i] + d))) };
}

const digits = (ms, behind = Math.abs(ms) < 10 ? 2 : 1) => ms.toFixed(behind).replace("-", "−");
const range = ({ median, low, high }, behind) => (
  `${digits(median, behind)} (${digits(low, behind)} to ${digits(high, behind)})`);

// All of it as a line of text: groups as they were given, `times` in ms by group, variant and turn.
export function line(groups, times, device) {
  const parts = groups.map(({ title, variants }, g) => `${title}: ${variants.map(
    ({ name }, v) => `${name} ${range(spread(times[g][v]))} ms`).join(", ")}`);
  const { ms, percent } = saved(times[0]);
  parts[0] += `, saves ${range(ms)} ms, ${range(percent, 1)} %`;
  return `${parts.join("; ")}; medians (middle 80 %) of ${times.map((t) => t[0].length).join(", ")} turns; ${device}`;
}

// Milliseconds of each run of a variant, turn by turn: times[variant][turn].
async function timed(ort, sessions, variants, clock = () => performance.now()) {
  const calls = variants.map(({ shape }, v) => {
    const x = new ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b)).fill(1), [1, ...shape]);
    return () => sessions[v].run({ x });
  });
  const often = [];
  for (const call of calls) {
    await call(); // to warm up
    const start = clock();
    await call();
    often.push(Math.max(1, Math.ceil(SHORTEST / Math.max(clock() - start, 0.1))));
  }
  const times = calls.map(() => []);
  const start = clock();
  for (let turn = 0; turn < TURNS && (turn < FEWEST || clock() - start < LONGEST); turn += 1) {
    await breath();
    for (const [v, call] of calls.entries()) {
      const before = clock();
      for (let i = 0; i < often[v]; i += 1) await call();
      times[v].push((clock() - before) / often[v]);
    }
  }
  return times;
}

export function mount(stage, { groups, quote }) {
  const results = groups.map(({ title }) => table(
    ["", "multiply-adds (M)", "ms", "middle 80 %", "to the first"], title));
  const said = make("p");
  const text = make("textarea", { readonly: "", rows: 6, "aria-label": "The result as a line of text" });
  const copied = make("span", { role: "status" });
  const copy = make("button", { type: "button" }, "Copy the line");
  copy.onclick = async () => {
    text.select();
    try {
      await navigator.clipboard.writeText(text.value);
      copied.textContent = " Copied.";
    } catch { // a page without https may not
      copied.textContent = document.execCommand("copy") ? " Copied." : " It is selected: copy it with the keyboard.";
    }
  };
  const end = make("div", { hidden: "" }, said, text, make("p", {}, copy, copied));

  const go = action("Time them here (14 MB to load, under a minute to run)", async (say) => {
    end.hidden = true;
    const times = [];
    for (const [g, { title, variants }] of groups.entries()) {
      say(`${g + 1} of ${groups.length}: ${title} …`);
      const sessions = [];
      try {
        for (const { graph } of variants) sessions.push(await network(`${graph}.onnx.gz`));
        times.push(await timed(await runtime(), sessions, variants));
      } finally {
        for (const session of sessions) await session.release();
      }
      results[g].fill(variants.map(({ name, madds }, v) => {
        const { median, low, high } = spread(times[g][v]);
        const ratio = quantile(times[g][v].map((t, i) => t / times[g][0][i]), 0.5);
        return [name, (madds / 1e6).toFixed(1), digits(median), `${digits(low)} to ${digits(high)}`, ratio.toFixed(2)];
      }));
      results[g].element.hidden = false;
    }
    const { ms, percent } = saved(times[0]);
    said.textContent = `On this device the redesign saves ${range(ms)} ms, `
      + `${range(percent, 1)} % of V3-Large’s running time. `
      + `The slide: “${quote}”`;
    text.value = line(groups, times, `onnxruntime-web ${(await runtime()).env.versions.web}, WebAssembly, one thread; ${navigator.userAgent}; ${new Date().toISOString().slice(0, 10)}`);
    copied.textContent = "";
    end.hidden = false;
    say("Done.");
  });
  for (const { element } of results) element.hidden = true;
  stage.append(go.button, go.line, ...results.map(({ element }) => element), end);
}
