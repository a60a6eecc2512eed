// Chapter 4: a flow in the plane, its steps, the gradients of a loss at its end, and the printed
// equations. The layer is the chapter's, σ(h) = tanh(θh); the methods' coefficients are mnlib.ode's.
import { choice, dial, live, make, show, table } from "./ui.js";

const FINE = 512; // RK4 steps for what is called the flow; the tests say how near they come
const RATE = 0.1; // of the descent step that shows the sign of (7)

// What the layer does: σ(h), its Jacobian, and the two products that the adjoint needs.
export function layer(theta) {
  const [[t11, t12], [t21, t22]] = theta;
  const slope = ([x, y]) => [Math.tanh(t11 * x + t12 * y), Math.tanh(t21 * x + t22 * y)];
  const jacobian = (h) => {
    const [s, u] = slope(h).map((value) => 1 - value * value);
    return [[s * t11, s * t12], [u * t21, u * t22]];
  };
  // the row aᵀ ∂σ/∂h
  const pull = (a, h) => {
    const [[p, q], [r, s]] = jacobian(h);
    return [a[0] * p + a[1] * r, a[0] * q + a[1] * s];
  };
  // aᵀ ∂σ/∂θ, the four entries of θ row by row
  const weigh = (a, h) => {
    const [s, u] = slope(h).map((value, i) => a[i] * (1 - value * value));
    return [s * h[0], s * h[1], u * h[0], u * h[1]];
  };
  return { slope, jacobian, pull, weigh };
}

// y + dt Σ weights[i] slopes[i]; plain loops, for this runs while the reader drags
function plus(y, dt, weights, slopes) {
  const sum = y.slice();
  for (let i = 0; i < weights.length; i += 1) {
    for (let n = 0; n < y.length; n += 1) sum[n] += dt * weights[i] * slopes[i][n];
  }
  return sum;
}

// One Runge–Kutta step of dy/dt = f(y): the new state, and the states at which f was evaluated.
export function step(f, { a, b }, y, dt) {
  const slopes = [];
  const stages = a.map((row) => {
    const stage = plus(y, dt, row, slopes);
    slopes.push(f(stage));
    return stage;
  });
  return { next: plus(y, dt, b, slopes), stages };
}

// All steps from 0 to tau (which may be negative), with their stages.
export function solve(f, tableau, start, tau, count) {
  const states = [start];
  const stages = [];
  for (let n = 0; n < count; n += 1) {
    const taken = step(f, tableau, states[n], tau / count);
    states.push(taken.next);
    stages.push(taken.stages);
  }
  return { states, stages };
}

// Backpropagation through the steps, which is their discrete adjoint: aₙ for all n, and dL/dθ.
export function backpropagate({ pull, weigh }, { a: mu, b }, stages, dt, terminal) {
  let a = terminal;
  let weights = [0, 0, 0, 0];
  const adjoints = [a];
  for (const points of stages.toReversed()) {
    const pulled = [];
    let next = a;
    for (let i = points.length - 1; i >= 0; i -= 1) {
      // what the slope of stage i does to the loss: through the sum, and through later stages
      const own = a.map((x, n) => {
        let total = b[i] * x;
        for (let j = i + 1; j < points.length; j += 1) total += mu[j][i] * pulled[j][n];
        return dt * total;
      });
      pulled[i] = pull(own, points[i]);
      const gained = weigh(own, points[i]);
      weights = weights.map((w, n) => w + gained[n]);
      next = next.map((x, n) => x + pulled[i][n]);
    }
    a = next;
    adjoints.unshift(a);
  }
  return { start: a, theta: weights, adjoints };
}

// The continuous adjoint: features, adjoint and parameter gradient solved backwards together.
export function adjoint({ slope, pull, weigh }, tableau, end, terminal, tau, count) {
  const both = (y) => {
    const [h, a] = [y.slice(0, 2), y.slice(2, 4)];
    const [da, dg] = [pull(a, h), weigh(a, h)];
    return [...slope(h), -da[0], -da[1], -dg[0], -dg[1], -dg[2], -dg[3]];
  };
  const { states } = solve(both, tableau, [...end, ...terminal, 0, 0, 0, 0], -tau, count);
  const last = states.at(-1);
  return { start: last.slice(2, 4), theta: last.slice(4), back: states.map((y) => y.slice(0, 2)) };
}

const distance = (x, y) => Math.hypot(...x.map((value, n) => value - y[n]));
export const relative = (x, y) => distance(x, y) / Math.hypot(...y);
const half = (h, goal) => distance(h, goal) ** 2 / 2;

// Simpson's rule over values at equal distances, an even number of intervals.
function simpson(values, length) {
  const last = values.length - 1;
  const weight = (i) => (i === 0 || i === last ? 1 : 2 + 2 * (i % 2));
  return values[0].map((_, n) =>
    (values.reduce((sum, value, i) => sum + weight(i) * value[n], 0) * length) / last / 3);
}

// Everything the bench shows. Throws RangeError for what cannot be meant.
export function bench({ theta, goal, tableaux }, { start, tau, method, steps }) {
  if (!(start.length === 2 && start.every(Number.isFinite))) {
    throw new RangeError(`the start (${start}) is no point of the plane: give two numbers`);
  }
  if (!(tau > 0 && tau <= 8)) throw new RangeError(`τ = ${tau} is out of range: give 0.1 to 8`);
  if (!(Number.isInteger(steps) && steps >= 1 && steps <= 256)) {
    throw new RangeError(`N = ${steps} steps is out of range: give 1 to 256`);
  }
  if (!(method in tableaux)) throw new RangeError(`“${method}” is no method: choose euler, midpoint or rk4`);
  const field = layer(theta);
  const { euler, rk4 } = tableaux;
  const from = (h) => h.map((x, n) => x - goal[n]); // the gradient of the loss at the end

  // the flow, and its gradient
  const fine = solve(field.slope, rk4, start, tau, FINE);
  const end = fine.states.at(-1);
  const truth = backpropagate(field, rk4, fine.stages, tau / FINE, from(end));

  // the steps chosen, and the gradients by both ways
  const taken = solve(field.slope, tableaux[method], start, tau, steps);
  const reached = taken.states.at(-1);
  const terminal = from(reached);
  const backprop = backpropagate(field, tableaux[method], taken.stages, tau / steps, terminal);
  const continuous = adjoint(field, tableaux[method], reached, terminal, tau, steps);

  // the equations as printed, at the flow
  const full = solve(field.slope, euler, start, steps, steps).states.at(-1);
  const literal = step(field.slope, euler, start, tau).next;
  const turned = (y) => { // da/dt = −Ja: with the transpose left out
    const [h, a] = [y.slice(0, 2), y.slice(2)];
    const rows = field.jacobian(h);
    return [...field.slope(h), ...rows.map(([p, q]) => -(p * a[0] + q * a[1]))];
  };
  const untransposed = solve(turned, rk4, [...end, ...from(end)], -tau, FINE).states.at(-1).slice(2);
  const along = (product) => simpson(truth.adjoints.map((a, n) => product(a, fine.states[n])), tau);
  const six = along(field.pull).map((x) => -x);
  const seven = along(field.weigh).map((x) => -x);
  const after = (gradient) => {
    const moved = theta.map((row, i) => row.map((w, j) => w - RATE * gradient[2 * i + j]));
    return half(solve(layer(moved).slope, rk4, start, tau, FINE).states.at(-1), goal);
  };
  return {
    fine: fine.states, end, loss: half(end, goal), truth,
    path: taken.states, error: distance(reached, end), backprop, continuous,
    printed: {
      full, literal, untransposed,
      six: { left: from(end), right: six },
      seven: { gradient: seven, printed: after(seven), right: after(seven.map((x) => -x)) },
    },
  };
}

const REACH = 2.6; // of the plane that is drawn
const pair = (h) => `(${show(h[0])}, ${show(h[1])})`;
const d = (points) => `M${points.map(([x, y]) => `${x.toFixed(4)},${(-y).toFixed(4)}`).join("L")}`;

export function mount(stage, data) {
  const settings = structuredClone(data.settings);
  const { slope } = layer(data.theta);

  const svg = make("svg", {
    viewBox: `${-REACH} ${-REACH} ${2 * REACH} ${2 * REACH}`, class: "mnlib-play-plane", role: "img",
  });
  const arrows = make("path", { class: "mnlib-play-arrows" });
  let text = "";
  for (let x = -2.4; x < 2.5; x += 0.4) {
    for (let y = -2.4; y < 2.5; y += 0.4) {
      const [u, v] = slope([x, y]).map((s) => 0.14 * s);
      text += d([[x - u, y - v], [x + u, y + v]]);
      // the head: two strokes back from the tip
      text += d([[x + 0.3 * u - 0.35 * v, y + 0.3 * v + 0.35 * u], [x + u, y + v],
        [x + 0.3 * u + 0.35 * v, y + 0.3 * v - 0.35 * u]]);
    }
  }
  arrows.setAttribute("d", text);
  const flow = make("path", { class: "mnlib-play-flow" });
  const back = make("path", { class: "mnlib-play-back" });
  const path = make("path", { class: "mnlib-play-path" });
  const dots = make("g", { class: "mnlib-play-dots" });
  const [gx, gy] = data.goal;
  const goal = make("path", {
    class: "mnlib-play-goal", d: d([[gx - 0.1, gy - 0.1], [gx + 0.1, gy + 0.1]]) + d([[gx - 0.1, gy + 0.1], [gx + 0.1, gy - 0.1]]),
  });
  const handle = make("g", { class: "mnlib-play-handle" },
    make("circle", { r: 0.34, class: "mnlib-play-hit" }), make("circle", { r: 0.11 }));
  svg.append(arrows, flow, back, path, dots, goal, handle);
  const legend = make("p", { class: "mnlib-play-legend" });
  for (const [name, words] of [
    ["flow", "flow"], ["path", "the steps"], ["back", "features solved backwards by the adjoint"], ["goal", "× goal"],
  ]) legend.append(make("span", { class: `mnlib-play-key-${name}` }, words), " ");

  const gradients = table(
    ["gradient of L = |h(τ) − goal|²/2", "∂L/∂h(0)", "its error", "error of dL/dθ"],
    "The gradient by all ways; errors relative to the gradient of the flow",
  );
  const printed = table(
    ["equation", "as printed", "what holds", "apart by"],
    "The printed equations at this flow, with the readings that the chapter tries",
  );
  const { element: line, say } = live();

  const update = () => {
    const found = bench(data, settings);
    const { truth, backprop, continuous, end, printed: p } = found;
    flow.setAttribute("d", d(found.fine.filter((_, n) => n % 8 === 0)));
    path.setAttribute("d", d(found.path));
    back.setAttribute("d", d(continuous.back));
    const shown = found.path.length > 65 ? [] : found.path.slice(1);
    dots.replaceChildren(...shown.map(([x, y]) => make("circle", { cx: x, cy: -y, r: 0.045 })));
    handle.setAttribute("transform", `translate(${settings.start[0]} ${-settings.start[1]})`);
    const row = (name, { start, theta }) => [
      name, pair(start), show(relative(start, truth.start), 2), show(relative(theta, truth.theta), 2),
    ];
    gradients.fill([
      ["of the flow", pair(truth.start), "", ""],
      row("backpropagation or checkpoints: the discrete adjoint of the steps", backprop),
      row("continuous adjoint, the same steps backwards", continuous),
    ]);
    const n = settings.steps;
    printed.fill([
      [`(1) without τ, ${n} full branches`, `h = ${pair(p.full)}`, `h(τ) = ${pair(end)}`, show(distance(p.full, end), 2)],
      ["(3) with t standing still", `h = ${pair(p.literal)}`, `h(τ) = ${pair(end)}`, show(distance(p.literal, end), 2)],
      ["(5) as columns, without the transpose", `a(0) = ${pair(p.untransposed)}`, `a(0) = ${pair(truth.start)}`,
        show(distance(p.untransposed, truth.start), 2)],
      ["(6), its right side", pair(p.six.right), `left side ${pair(p.six.left)}`,
        `${pair(p.six.left.map((x, i) => x - p.six.right[i]))} = ∂L/∂z(t)`],
      [`(7), from loss ${show(found.loss)} a step of ${RATE} down it`, `to ${show(p.seven.printed)}`, `with plus to ${show(p.seven.right)}`,
        show(p.seven.printed - p.seven.right, 2)],
    ]);
    const gap = relative(continuous.start, truth.start);
    const words = `From ${pair(settings.start)}, ${n} steps end ${show(found.error, 2)} from the flow, at loss ${show(half(found.path.at(-1), data.goal))}.`
      + ` The gradient of the steps is ${show(100 * relative(backprop.start, truth.start), 1)}\u00a0%, the continuous adjoint ${show(100 * gap, 1)}\u00a0% from that of the flow.`;
    say(words);
    svg.setAttribute("aria-label", `The plane of the two features with the flow of σ and a path of ${n} steps. ${words}`);
  };

  const change = (name) => (value) => { settings[name] = value; update(); };
  const axis = (i) => dial(
    { label: ["start, feature 1", "start, feature 2"][i], min: -2.4, max: 2.4, step: 0.05, value: settings.start[i] },
    (value) => { settings.start[i] = value; update(); },
  );
  const axes = [axis(0), axis(1)];
  const methods = [["euler", "Euler"], ["midpoint", "midpoint"], ["rk4", "RK4 (3/8 rule)"]];
  const controls = make("div", { class: "mnlib-play-controls" },
    axes[0].element, axes[1].element,
    dial({ label: "τ, length", min: 0.1, max: 8, step: 0.1, value: settings.tau }, change("tau")).element,
    dial({ label: "N, steps", min: 1, max: 256, whole: true, value: settings.steps,
      values: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256] }, change("steps")).element,
    choice({ label: "method", value: settings.method, options: methods }, change("method")));

  // dragging: the handle follows the pointer, rounded as the dials are
  handle.onpointerdown = (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); };
  handle.onpointermove = (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const box = svg.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
    settings.start = at.map((x) => {
      const clamped = Math.min(2.4, Math.max(-2.4, (2 * x - 1) * REACH));
      return Math.round(100 * clamped) / 100;
    });
    axes.forEach((dial, i) => dial.set(settings.start[i]));
    update();
  };

  stage.append(
    make("div", { class: "mnlib-play-halves" }, make("div", {}, svg, legend), make("div", {}, controls, line)),
    gradients.element, printed.element);
  update();
}
