// What the user has brought: files become one scan that can be seen and sent.

import type { Camera, DepthMap, Points } from "./stage";

type Viewer = typeof import("./stage");

export interface Scan {
  name: string;
  file: File;
  kind: "points" | "depth";
  points: Points | null; // null where they cannot be shown here
  depth: DepthMap | null;
  mask: File | null;
  keeps: (pixel: number) => boolean; // what the mask keeps
  note: string; // why it cannot be shown
  kept: boolean; // by the service, which is asked for it again
  facts: Facts;
}

/** What is told beside the files, as the fields of the form hold it. */
export interface Facts {
  viewpoint: string;
  fx: string;
  fy: string;
  cx: string;
  cy: string;
  depthScale: string;
  pose: string; // camera to world, JSON
}

const NOTHING: Facts = { viewpoint: "", fx: "", fy: "", cx: "", cy: "", depthScale: "", pose: "" };
const DEPTH_ONLY = /\.(tiff?|exr)$/i;
const all = () => true;

/** Files that were dropped together: a scan, and maybe its mask and a JSON file that tells of its camera. */
export async function openScan(files: File[], before: Scan | null, viewer: Viewer): Promise<Scan> {
  let scan: Scan | null = null;
  let mask: File | null = null;
  let told: Partial<Facts> = {};
  for (const file of files) {
    if (/\.json$/i.test(file.name)) told = { ...told, ...factsOf(JSON.parse(await file.text())) };
    else if (await isMask(file, viewer)) mask = file;
    else if (scan) throw new Error("Bring one scan at a time here; the API takes several views of one object.");
    else scan = await read(file, viewer);
  }
  scan ??= before && { ...before };
  if (!scan) throw new Error("There is no scan among these files, only what goes beside one.");
  scan.facts = { ...scan.facts, ...told };
  if (mask) {
    if (scan.kind !== "depth") throw new Error("A picture of 8 bits is a mask, which goes with a depth map. Drop both together.");
    scan.mask = mask;
    scan.keeps = viewer.readMask(await mask.arrayBuffer());
  }
  return located(scan, viewer);
}

async function isMask(file: File, viewer: Viewer): Promise<boolean> {
  if (!/\.png$/i.test(file.name)) return false;
  const bits = viewer.pngBits(await file.slice(0, 64).arrayBuffer());
  return bits !== null && bits <= 8;
}

async function read(file: File, viewer: Viewer): Promise<Scan> {
  const scan: Scan = { name: file.name, file, kind: "points", points: null, depth: null, mask: null, keeps: all, note: "", kept: false, facts: NOTHING };
  const bytes = await file.arrayBuffer();
  try {
    if (DEPTH_ONLY.test(file.name)) return { ...scan, kind: "depth", note: "Depth maps of this kind are not drawn here, but the service reads them." };
    if (/\.png$/i.test(file.name) || isDepthArray(file.name, bytes, viewer))
      return { ...scan, kind: "depth", depth: viewer.readDepth(file.name, bytes, null) };
    return { ...scan, points: viewer.readPoints(file.name, bytes) };
  } catch (error) {
    return { ...scan, note: `Not drawn here: ${(error as Error).message}. You can send it all the same; the service will say what it makes of it.` };
  }
}

function isDepthArray(name: string, bytes: ArrayBuffer, viewer: Viewer): boolean {
  return /\.npy$/i.test(name) && ![3, 6].includes(viewer.readNpy(bytes).columns);
}

/** The facts in a JSON file: our own examples', Open3D's intrinsics, or fx, fy, cx, cy. */
export function factsOf(told: any): Partial<Facts> {
  const facts: Partial<Facts> = {};
  const camera = told.intrinsics ?? told.intrinsic ?? told;
  const matrix = camera.intrinsic_matrix;
  const numbers = matrix ? { fx: matrix[0], fy: matrix[4], cx: matrix[6], cy: matrix[7] } : camera;
  for (const name of ["fx", "fy", "cx", "cy"] as const) if (numbers[name] !== undefined) facts[name] = String(numbers[name]);
  if (told.viewpoint) facts.viewpoint = told.viewpoint.join(", ");
  if (told.depth_scale) facts.depthScale = String(told.depth_scale);
  if (told.camera_to_world) facts.pose = JSON.stringify(told.camera_to_world);
  return facts;
}

/** The same scan, with the points of its depth map where the camera is known. */
export function located(scan: Scan, viewer: Viewer): Scan {
  const camera = cameraOf(scan.facts);
  if (!scan.depth) return scan;
  return { ...scan, points: camera && viewer.unproject(scan.depth, camera, scan.keeps) };
}

function cameraOf(facts: Facts): Camera | null {
  const [fx, fy, cx, cy] = [facts.fx, facts.fy, facts.cx, facts.cy].map((text) => (text.trim() ? Number(text) : NaN));
  if (![fx, fy, cx, cy].every(Number.isFinite)) return null;
  try {
    return { fx, fy, cx, cy, pose: facts.pose.trim() ? JSON.parse(facts.pose) : null };
  } catch {
    return { fx, fy, cx, cy, pose: null };
  }
}

/** What `up=auto` means for this scan. */
export const upOf = (scan: Scan, up: string): string =>
  up !== "auto" ? up : scan.kind === "depth" && !scan.facts.pose.trim() ? "-y" : "+y";

/** A scan that the service has kept: the points as it read them. It cannot be sent again from here. */
export async function keptScan(name: string, file: File, viewer: Viewer): Promise<Scan> {
  return { ...(await read(file, viewer)), name, kept: true };
}

/** The request's form. */
export function formOf(scan: Scan): FormData {
  const { facts } = scan;
  const form = new FormData();
  form.append("scan", scan.file, scan.name);
  if (scan.kind === "points") {
    const numbers = facts.viewpoint.replace(/[[\]]/g, "").trim();
    if (numbers) form.append("viewpoint", `[${numbers.split(/[\s,]+/).join(", ")}]`);
    return form;
  }
  if (scan.mask) form.append("mask", scan.mask, scan.mask.name);
  const { fx, fy, cx, cy } = facts;
  if (fx) form.append("intrinsics", `{"fx": ${fx}, "fy": ${fy}, "cx": ${cx}, "cy": ${cy}}`);
  if (facts.pose.trim()) form.append("camera_to_world", facts.pose);
  if (facts.depthScale.trim()) form.append("depth_scale", facts.depthScale);
  return form;
}
