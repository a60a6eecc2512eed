// onnxruntime-web: it comes once a piece asks for it, 14 MB of WebAssembly, and runs on one thread,
// for which a page needs no special headers.
import { make } from "./ui.js";

let arriving;
// The runtime, loaded once for all pieces of a page; a load that failed can be tried again.
export function runtime() {
  arriving ??= import(place("ort.wasm.bundle.min.mjs")).then((ort) => {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { wasm: place("ort-wasm-simd-threaded.wasm") };
    return ort;
  });
  arriving.catch(() => { arriving = undefined; });
  return arriving;
}

const place = (file) => new URL(`onnx/${file}`, window.mnlibPlay.folder).href;

// A network made ready to run. A graph may be gzipped; some servers unpack it on the way.
export async function network(file) {
  const ort = await runtime();
  const answer = await fetch(place(file));
  if (!answer.ok) throw new Error(`${file} is not there (${answer.status})`);
  let bytes = new Uint8Array(await answer.arrayBuffer());
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    bytes = new Uint8Array(await new Response(unpacked).arrayBuffer());
  }
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

// Let the page draw what has changed before work that blocks it.
export const breath = () => new Promise((resolve) => { setTimeout(resolve, 20); });

// A button that does something which takes time, once at a time, and a line that says how it goes.
export function action(text, work) {
  const button = make("button", { type: "button" }, text);
  const line = make("p", { role: "status", class: "mnlib-play-live" });
  const say = (message) => { line.textContent = message; };
  button.onclick = async () => {
    button.disabled = true;
    try {
      await work(say);
    } catch (error) {
      console.error(error);
      say(location.protocol === "file:"
        ? "A page that was opened as a file may load nothing further: open it from a server, as with python -m http.server."
        : `It did not work: ${error.message}.`);
    } finally {
      button.disabled = false;
    }
  };
  return { button, line };
}
