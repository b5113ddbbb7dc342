// Depth maps in the browser: as a picture, and with the camera's intrinsics as points.

import { decode } from "fast-png";
import { readNpy, type Points } from "./points";

export interface DepthMap {
  width: number;
  height: number;
  values: Float32Array; // row by row; 0 is no measurement
  perMetre: number; // of the values, unless told otherwise
}

export interface Camera {
  fx: number;
  fy: number;
  cx: number;
  cy: number;
  pose: number[][] | null; // camera to world, 4 rows of 4
  perMetre: number | null; // values of its depth maps; null: as their kind has it
}

const FAR = 1e9; // what is not nearer is no measurement

/** A PNG of 16 bits or an NPY of two dimensions. Throws when it cannot be shown here. */
export function readDepth(name: string, bytes: ArrayBuffer): DepthMap {
  const { width, height, values, whole } = name.toLowerCase().endsWith(".npy") ? ofNpy(bytes) : ofPng(bytes);
  const measured = Float32Array.from(values, (value) => (value > 0 && value < FAR ? value : 0));
  return { width, height, values: measured, perMetre: whole ? 1000 : 1 };
}

function ofNpy(bytes: ArrayBuffer) {
  const { values, rows, columns, whole } = readNpy(bytes);
  return { width: columns, height: rows, values, whole };
}

function ofPng(bytes: ArrayBuffer) {
  const { width, height, depth, channels, data } = decode(new Uint8Array(bytes));
  if (depth !== 16 || channels !== 1) throw new Error("a depth map is a grey PNG of 16 bits");
  return { width, height, values: data, whole: true };
}

/** Bits of each sample of a PNG: 16 of a depth map, 8 or 1 of a mask. Null for another file. */
export function pngBits(bytes: ArrayBuffer): number | null {
  const view = new DataView(bytes);
  return bytes.byteLength > 26 && view.getUint32(0) === 0x89504e47 ? view.getUint8(24) : null;
}

/** Which pixels a mask keeps: those that are not black. */
export function readMask(bytes: ArrayBuffer): (pixel: number) => boolean {
  const { data, channels, depth, width } = decode(new Uint8Array(bytes));
  if (depth >= 8) return (pixel) => data[channels * pixel] > 0;
  const stride = Math.ceil((width * depth) / 8);
  return (pixel) => (data[Math.floor(pixel / width) * stride + (((pixel % width) * depth) >> 3)] >> (7 - (pixel % 8))) % 2 > 0;
}

/** The points that the pixels saw: camera's frame, or the world's where the pose is known; metres. */
export function unproject(map: DepthMap, camera: Camera, keeps: (pixel: number) => boolean): Points {
  const found: number[] = [];
  const pose = camera.pose ?? [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];
  const perMetre = camera.perMetre ?? map.perMetre;
  map.values.forEach((value, pixel) => {
    if (value === 0 || !keeps(pixel)) return;
    const z = value / perMetre;
    const x = (((pixel % map.width) - camera.cx) / camera.fx) * z;
    const y = ((Math.floor(pixel / map.width) - camera.cy) / camera.fy) * z;
    for (const row of pose.slice(0, 3)) found.push(row[0] * x + row[1] * y + row[2] * z + row[3]);
  });
  return { positions: new Float32Array(found), colors: null, total: found.length / 3 };
}

/** A picture of the depth map: near is bright; what the mask leaves out is faint. */
export function drawDepth(canvas: HTMLCanvasElement, map: DepthMap, keeps: (pixel: number) => boolean): void {
  const seen = map.values.filter((z) => z > 0).sort();
  const [near, far] = [seen[Math.floor(seen.length * 0.02)] ?? 0, seen[Math.floor(seen.length * 0.98)] ?? 1];
  canvas.width = map.width;
  canvas.height = map.height;
  const image = new ImageData(map.width, map.height);
  map.values.forEach((z, pixel) => {
    const share = Math.min(1, Math.max(0, (far - z) / (far - near || 1)));
    const kept = keeps(pixel);
    image.data.set([40 + share * 200, 60 + share * 150, 90 + share * 100, z === 0 ? 0 : kept ? 255 : 70], 4 * pixel);
  });
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}
