// Voxels as they come from the server: base64 of zlib of bits or bytes, the first axis fastest.

/**
 * The voxels of a box: `{low, high, size, values}`, `values` a Uint8Array with voxel (i, j, k) of the box at
 * i + size[0] * (j + size[1] * k).
 */
export async function decode(part) {
  const bytes = await inflate(unpacked(part.data));
  const size = part.high.map((high, axis) => high - part.low[axis]);
  const box = { low: part.low, high: part.high, size };
  if (part.encoding !== "bits+deflate") return { ...box, values: bytes };
  const values = new Uint8Array(size[0] * size[1] * size[2]);
  let v = 0;
  for (const byte of bytes) {
    // Most bytes of a mask's box are all inside or all outside.
    if (byte === 255) values.fill(1, v, v + 8);
    else if (byte) for (let bit = 0; bit < 8; bit++) if (byte & (128 >> bit)) values[v + bit] = 1;
    v += 8;
  }
  return { ...box, values };
}

function unpacked(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

async function inflate(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
