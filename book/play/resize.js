// A picture at another size by Pillow's bilinear filter, which antialiases: the same weights, the
// same fixed point and the same rounding between the two passes. Where Pillow begins with the
// vertical one, as with tall pictures, a pixel may be one level apart; else they are the same.

const BITS = 22; // of a weight behind the point; sums stay below 2^53, where JavaScript counts exactly

// For each of `to` positions the first of `from` that count, and their weights.
export function weights(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const triangle = [];
    for (let x = first; x < last; x += 1) {
      triangle.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / reach))));
    }
    const sum = triangle.reduce((a, b) => a + b, 0);
    return { first, weights: triangle.map((w) => Math.trunc((w / sum) * 2 ** BITS + 0.5)) };
  });
}

const rounded = (sum) => Math.min(255, Math.floor((sum + 2 ** (BITS - 1)) / 2 ** BITS));

// Rows of a picture, RGBA bytes, each made `to` wide: RGB bytes.
export function widths(rgba, width, height, to) {
  const table = weights(width, to);
  const out = new Uint8Array(height * to * 3);
  for (let y = 0; y < height; y += 1) {
    for (let i = 0; i < to; i += 1) {
      const { first, weights: row } = table[i];
      const sums = [0, 0, 0];
      for (let j = 0, at = 4 * (y * width + first); j < row.length; j += 1, at += 4) {
        for (let c = 0; c < 3; c += 1) sums[c] += row[j] * rgba[at + c];
      }
      for (let c = 0; c < 3; c += 1) out[3 * (y * to + i) + c] = rounded(sums[c]);
    }
  }
  return out;
}

// A picture, RGB bytes, made `to` high: RGB bytes.
export function heights(rgb, width, height, to) {
  const out = new Uint8Array(to * width * 3);
  weights(height, to).forEach(({ first, weights: column }, i) => {
    for (let x = 0; x < 3 * width; x += 1) {
      let sum = 0;
      for (let j = 0; j < column.length; j += 1) sum += column[j] * rgb[3 * width * (first + j) + x];
      out[3 * width * i + x] = rounded(sum);
    }
  });
  return out;
}
