// The surface of a mask as triangles, by surface nets: a point in every cell of eight voxels that are not all alike.

const MOST_VOXELS = 2_000_000; // beyond, every second voxel has to do
const ROUNDS = 4; // of smoothing

/** Points in mm RAS+ (x, y, z after one another) and corners of triangles; null for an empty mask. */
export function surface(box, volume) {
  const { size, stride, at } = sampled(box);
  const [ni, nj, nk] = size.map((n) => n + 1); // cells, with a rim
  const cells = new Int32Array(ni * nj * nk).fill(-1);
  const points = [];
  const corner = new Uint8Array(8);
  const quads = [];
  const steps = [1, ni, ni * nj];
  for (let k = 0, cell = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0; i < ni; i++, cell++) {
        let inside = 0;
        for (let n = 0; n < 8; n++) inside += corner[n] = at(i - 1 + (n & 1), j - 1 + ((n >> 1) & 1), k - 1 + (n >> 2));
        if (inside === 0 || inside === 8) continue;
        cells[cell] = points.length / 3;
        points.push(...middle(corner, i, j, k));
        // The edges that leave the cell's first corner: their four cells are all there by now.
        for (let axis = 0; axis < 3; axis++) {
          if (corner[0] === corner[1 << axis]) continue;
          const [b, c] = [steps[(axis + 1) % 3], steps[(axis + 2) % 3]];
          const ring = [cell, cell - b, cell - b - c, cell - c].map((n) => cells[n]);
          quads.push(corner[0] ? ring : ring.reverse());
        }
      }
    }
  }
  if (!points.length) return null;
  const smooth = relaxed(Float32Array.from(points), quads);
  return { points: placed(smooth, box.low, stride, volume), triangles: triangles(quads, volume.affine) };
}

function sampled(box) {
  const stride = box.values.length > MOST_VOXELS ? Math.ceil(Math.cbrt(box.values.length / MOST_VOXELS)) : 1;
  const size = box.size.map((n) => Math.ceil(n / stride));
  const [ni, nj] = box.size;
  const at = (i, j, k) => {
    if (i < 0 || j < 0 || k < 0 || i >= size[0] || j >= size[1] || k >= size[2]) return 0;
    return box.values[stride * (i + ni * (j + nj * k))];
  };
  return { size, stride, at };
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

function placed(points, low, stride, volume) {
  for (let n = 0; n < points.length; n += 3) {
    const voxel = [0, 1, 2].map((axis) => low[axis] + points[n + axis] * stride);
    points.set(volume.toWorld(voxel), n);
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
