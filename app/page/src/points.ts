// Point clouds in the browser, so that a scan is seen before it is sent. What the service makes of a file is
// for the service to say: what cannot be read here may still be sent.

import { unzipSync } from "fflate";
import { Color, SRGBColorSpace, type BufferGeometry } from "three";
import { PCDLoader } from "three/examples/jsm/loaders/PCDLoader.js";
import { PLYLoader } from "three/examples/jsm/loaders/PLYLoader.js";
import { STLLoader } from "three/examples/jsm/loaders/STLLoader.js";

export interface Points {
  positions: Float32Array; // x y z of each point, scan's frame and unit
  colors: Float32Array | null; // linear r g b of each point, 0 to 1
  total: number; // points in the file; a large one is shown in part
}

/** A rectangle of numbers, row by row, as an NPY file holds it. */
export interface Table {
  values: ArrayLike<number>;
  rows: number;
  columns: number;
  whole: boolean; // of an integer type
}

const SHOWN = 400_000;

/** The points of a file, by the ending of its name. Throws when it holds none that can be read here. */
export function readPoints(name: string, bytes: ArrayBuffer): Points {
  const points = read(name.toLowerCase().split(".").pop() ?? "", bytes);
  if (points.positions.length === 0) throw new Error("there are no points in it");
  return thinned(points);
}

function read(ending: string, bytes: ArrayBuffer): Points {
  const text = () => new TextDecoder().decode(bytes);
  if (ending === "ply") return ofGeometry(new PLYLoader().parse(bytes));
  if (ending === "pcd") return ofGeometry(new PCDLoader().parse(bytes).geometry);
  if (ending === "stl") return ofGeometry(new STLLoader().parse(bytes));
  if (ending === "obj") return ofTable(tableOfText(vertexLines(text())));
  if (ending === "npy") return ofTable(readNpy(bytes));
  if (ending === "npz") return ofArchive(new Uint8Array(bytes));
  if (["xyz", "txt", "csv", "pts"].includes(ending)) return ofTable(tableOfText(text()));
  throw new Error(`files that end in .${ending} cannot be shown here`);
}

function ofGeometry(geometry: BufferGeometry): Points {
  const position = geometry.getAttribute("position");
  if (!position) throw new Error("there are no points in it");
  const colors = geometry.getAttribute("color");
  return {
    positions: Float32Array.from(position.array),
    colors: colors?.itemSize === 3 ? Float32Array.from(colors.array) : null,
    total: position.count,
  };
}

const vertexLines = (text: string): string =>
  text
    .split("\n")
    .filter((line) => line.startsWith("v "))
    .map((line) => line.slice(2).split(/\s+/).slice(0, 3).join(" "))
    .join("\n");

function tableOfText(text: string): Table {
  const rows = text
    .split("\n")
    .map((line) => line.split("#")[0].trim().split(/[\s,;]+/).map(Number))
    .filter((row) => row.length >= 3 && row.every(Number.isFinite));
  const columns = Math.min(...rows.map((row) => row.length), 9);
  return { values: rows.flatMap((row) => row.slice(0, columns)), rows: rows.length, columns, whole: false };
}

function ofTable({ values, rows, columns }: Table): Points {
  if (columns < 3) throw new Error("a point needs three numbers");
  const positions = new Float32Array(3 * rows);
  for (let row = 0; row < rows; row++)
    for (let axis = 0; axis < 3; axis++) positions[3 * row + axis] = values[columns * row + axis];
  return { positions, colors: columns >= 6 ? colorsOf(values, rows, columns) : null, total: rows };
}

// The last three of six or nine columns are colours if all are whole numbers from 0 to 255, as the service has it.
function colorsOf(values: ArrayLike<number>, rows: number, columns: number): Float32Array | null {
  const colors = new Float32Array(3 * rows);
  const color = new Color();
  for (let row = 0; row < rows; row++) {
    const [r, g, b] = [3, 2, 1].map((back) => values[columns * (row + 1) - back]);
    if (![r, g, b].every((x) => Number.isInteger(x) && x >= 0 && x <= 255)) return null;
    color.setRGB(r / 255, g / 255, b / 255, SRGBColorSpace).toArray(colors, 3 * row);
  }
  return colors;
}

function ofArchive(bytes: Uint8Array): Points {
  const files = unzipSync(bytes, { filter: (file) => file.originalSize < 2 ** 28 });
  const found = files["points.npy"] ?? Object.values(files)[0];
  if (!found) throw new Error("the archive is empty");
  return ofTable(readNpy(found.slice().buffer as ArrayBuffer));
}

const KINDS: Record<string, [new (buffer: ArrayBuffer) => ArrayLike<number>, number]> = {
  f4: [Float32Array, 4],
  f8: [Float64Array, 8],
  u1: [Uint8Array, 1],
  u2: [Uint16Array, 2],
  i2: [Int16Array, 2],
  i4: [Int32Array, 4],
};

/** An NPY file of two dimensions, little-endian and in C order. */
export function readNpy(bytes: ArrayBuffer): Table {
  const view = new DataView(bytes);
  if (view.getUint32(0) !== 0x934e554d) throw new Error("this is no NPY file");
  const wide = view.getUint8(6) > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.slice(10, start));
  const [, order, kind] = header.match(/'descr':\s*'([<>|=])(\w\d)'/) ?? [];
  const shape = header.match(/'shape':\s*\((\d+),\s*(\d+),?\s*\)/);
  if (!shape || !KINDS[kind] || order === ">" || header.includes("'fortran_order': True"))
    throw new Error("only plain arrays of two dimensions can be shown here");
  const [rows, columns] = [Number(shape[1]), Number(shape[2])];
  const [kindOf, size] = KINDS[kind];
  const values = new kindOf(bytes.slice(start, start + rows * columns * size));
  if (values.length < rows * columns) throw new Error("the file ends too early");
  return { values, rows, columns, whole: kind[0] !== "f" };
}

/** The points of all views as one cloud; where there are several, those of a view without colours have its tint. */
export function together(views: { points: Points | null; tint: string }[]): Points | null {
  const clouds = views.flatMap(({ points, tint }) => (points ? [{ points, tint }] : []));
  if (views.length === 1 || clouds.length === 0) return clouds[0]?.points ?? null;
  const length = clouds.reduce((sum, { points }) => sum + points.positions.length, 0);
  const all = { positions: new Float32Array(length), colors: new Float32Array(length), total: 0 };
  let start = 0;
  for (const { points, tint } of clouds) {
    all.positions.set(points.positions, start);
    all.colors.set(points.colors ?? tinted(points.positions.length, tint), start);
    all.total += points.total;
    start += points.positions.length;
  }
  return thinned(all);
}

function tinted(length: number, tint: string): Float32Array {
  const rgb = new Color().setStyle(tint, SRGBColorSpace).toArray();
  return Float32Array.from({ length }, (_, i) => rgb[i % 3]);
}

function thinned(points: Points): Points {
  const count = points.positions.length / 3;
  const step = Math.ceil(count / SHOWN);
  if (step <= 1) return points;
  const kept = Math.floor(count / step);
  const some = (all: Float32Array) => Float32Array.from({ length: 3 * kept }, (_, i) => all[3 * step * Math.floor(i / 3) + (i % 3)]);
  return { positions: some(points.positions), colors: points.colors && some(points.colors), total: points.total };
}
