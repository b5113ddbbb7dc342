// A coarser mesh to be turned where the fine one takes too long to draw. It stands on vertices of the fine one.

import { BufferAttribute, BufferGeometry, Vector3 } from "three";

const CELLS = 56; // along the longest edge

/** The faces of a mesh whose vertices are, of all in a cell of a grid, the first: three indices each. */
export function coarser(geometry: BufferGeometry): BufferAttribute {
  const position = geometry.getAttribute("position");
  geometry.computeBoundingBox();
  const { min, max } = geometry.boundingBox!;
  const size = max.clone().sub(min);
  const cell = Math.max(size.x, size.y, size.z) / CELLS || 1;
  const first = new Map<number, number>();
  const at = new Vector3();
  const stand = Uint32Array.from({ length: position.count }, (_, vertex) => {
    at.fromBufferAttribute(position, vertex).sub(min).divideScalar(cell).floor();
    const key = at.x + 1024 * (at.y + 1024 * at.z);
    const found = first.get(key);
    if (found !== undefined) return found;
    first.set(key, vertex);
    return vertex;
  });
  const faces: number[] = [];
  const count = (geometry.index ?? position).count;
  for (let corner = 0; corner < count; corner += 3) {
    const [a, b, c] = [0, 1, 2].map((next) => stand[geometry.index ? geometry.index.getX(corner + next) : corner + next]);
    if (a !== b && b !== c && c !== a) faces.push(a, b, c);
  }
  return new BufferAttribute(Uint32Array.from(faces), 1);
}
