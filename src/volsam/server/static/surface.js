// The surface of a mask as triangles, by surface nets: a point in every cell of eight voxels that are not all alike.

const MOST_VOXELS = 4_000_000; // beyond, every second voxel has to do
const ROUNDS = 4; // of smoothing

/** Runs as a worker: `{box, affine}` in, `{points, triangles}` or null out, in the order asked. */
if (typeof WorkerGlobalScope !== "undefined") {
  onmessage = ({ data: { box, affine } }) => {
    const made = surface(box, affine);
    postMessage(made, made ? [made.points.buffer, made.triangles.buffer] : []);
  };
}

/** Points in mm RAS+ (x, y, z after one another) and corners of triangles; null for an empty mask. */
function surface(box, affine) {
  const { values, size, stride } = padded(box);
  const [ni, nj, nk] = size.map((n) => n - 1); // cells
  const cells = new Int32Array(ni * nj * nk).fill(-1);
  const points = [];
  const corner = new Uint8Array(8);
  const quads = [];
  const steps = [1, ni, ni * nj];
  const rows = [1, size[0], size[0] * size[1]];
  const around = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => (n & 1) + ((n >> 1) & 1) * rows[1] + (n >> 2) * rows[2]);
  for (let k = 0, cell = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0, at = rows[1] * j + rows[2] * k; i < ni; i++, cell++, at++) {
        let inside = 0;
        for (let n = 0; n < 8; n++) inside += corner[n] = values[at + around[n]];
        if (inside === 0 || inside === 8) continue;
        cells[cell] = points.length / 3;
        points.push(...middle(corner, i, j, k));
        // The edges that leave the cell's first corner: their four cells are all there by now.
        for (let axis = 0; axis < 3; axis++) {
          if (corner[0] === corner[1 << axis]) continue;
          const [b, c] = [steps[(axis + 1) % 3], steps[(axis + 2) % 3]];
          const ring = [cells[cell], cells[cell - b], cells[cell - b - c], cells[cell - c]];
          quads.push(corner[0] ? ring : ring.reverse());
        }
      }
    }
  }
  if (!points.length) return null;
  const smooth = relaxed(Float32Array.from(points), quads);
  return { points: placed(smooth, box.low, stride, affine), triangles: triangles(quads, affine) };
}

/** The mask with a rim of zeros around, thinned out where it is large. */
function padded(box) {
  const stride = Math.ceil(Math.cbrt(box.values.length / MOST_VOXELS)) || 1;
  const inner = box.size.map((n) => Math.ceil(n / stride));
  const size = inner.map((n) => n + 2);
  const values = new Uint8Array(size[0] * size[1] * size[2]);
  for (let k = 0; k < inner[2]; k++) {
    for (let j = 0; j < inner[1]; j++) {
      let from = box.size[0] * stride * (j + box.size[1] * k);
      let to = 1 + size[0] * (j + 1 + size[1] * (k + 1));
      for (let i = 0; i < inner[0]; i++, from += stride) values[to++] = box.values[from];
    }
  }
  return { values, size, stride };
}

/** The mean of the middles of the cell's edges that cross the surface, in voxels of the box. */
function middle(corner, i, j, k) {
  const sum = [0, 0, 0];
  let count = 0;
  for (let a = 0; a < 8; a++) {
    for (const bit of [1, 2, 4]) {
      if (a & bit || corner[a] === corner[a | bit]) continue;
      for (let axis = 0; axis < 3; axis++) sum[axis] += bit === 1 << axis ? 0.5 : (a >> axis) & 1;
      count++;
    }
  }
  return [i - 1 + sum[0] / count, j - 1 + sum[1] / count, k - 1 + sum[2] / count];
}

/** Every point moved towards the mean of its neighbours. */
function relaxed(points, quads) {
  const neighbours = new Uint32Array(points.length / 3);
  const sums = new Float32Array(points.length);
  for (let round = 0; round < ROUNDS; round++) {
    sums.fill(0);
    neighbours.fill(0);
    for (const quad of quads) {
      for (let n = 0; n < 4; n++) {
        const [a, b] = [quad[n], quad[(n + 1) % 4]];
        for (let axis = 0; axis < 3; axis++) {
          sums[3 * a + axis] += points[3 * b + axis];
          sums[3 * b + axis] += points[3 * a + axis];
        }
        neighbours[a]++;
        neighbours[b]++;
      }
    }
    for (let n = 0; n < points.length; n++) {
      const count = neighbours[(n / 3) | 0];
      if (count) points[n] = 0.4 * points[n] + (0.6 * sums[n]) / count;
    }
  }
  return points;
}

function placed(points, low, stride, affine) {
  for (let n = 0; n < points.length; n += 3) {
    const [i, j, k] = [0, 1, 2].map((axis) => low[axis] + points[n + axis] * stride);
    for (let axis = 0; axis < 3; axis++) {
      const [a, b, c, d] = affine[axis];
      points[n + axis] = a * i + b * j + c * k + d;
    }
  }
  return points;
}

function triangles(quads, affine) {
  const [[a, b, c], [d, e, f], [g, h, i]] = affine;
  const mirrored = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) < 0;
  const corners = new Uint32Array(6 * quads.length);
  quads.forEach((quad, n) => {
    const [p, q, r, s] = mirrored ? [...quad].reverse() : quad;
    corners.set([p, q, r, p, r, s], 6 * n);
  });
  return corners;
}
