// What the user has brought: files become views of one object, which can be seen and sent together.

import { cameraOf, factsIn, NOTHING, type Facts } from "./facts";
import type { DepthMap, Points } from "./stage";

type Viewer = typeof import("./stage");

/** One point cloud or depth map, with what goes beside it. */
export interface View {
  id: number; // of no other view
  name: string;
  file: File;
  kind: "points" | "depth";
  points: Points | null; // null where they cannot be shown here
  depth: DepthMap | null;
  mask: File | null;
  keeps: (pixel: number) => boolean; // what the mask keeps
  note: string; // why it cannot be shown
  tint: string; // its colour among several
  facts: Facts;
}

/** What one completion is asked for. */
export interface Scan {
  name: string;
  views: View[];
  points: Points | null; // of all views
  kept: boolean; // by the service, which is asked for it again
}

const TINTS = ["#d8632b", "#3b82b0", "#4f9d69", "#9163b0", "#c19a2b", "#2aa198"];
const MOST = 64; // files that the service takes at a time
const DEPTH_ONLY = /\.(tiff?|exr)$/i;
const BESIDE = /depth|mask|camera|intrinsics?|pose|scan|view/g;
const all = () => true;
let made = 0;

/** Files that were dropped together: scans, their masks, and JSON files that tell of cameras.
 *
 * With a new scan among them `before` goes, unless they are added to it. What goes beside a scan is of the view
 * with the same name, such as chair1_mask.png of chair1_depth.png; else of all, if it can be.
 */
export async function openScan(files: File[], before: View[], adds: boolean, viewer: Viewer): Promise<Scan> {
  const { scans, masks, facts } = await sorted(files, viewer);
  const fresh = await Promise.all(scans.map((file) => read(file, viewer)));
  const views = adds || fresh.length === 0 ? [...before] : [];
  if (views.length + fresh.length === 0) throw new Error("There is no scan among these files, only what goes beside one.");
  if (views.length + fresh.length > MOST) throw new Error(`${views.length + fresh.length} views are more than the service takes at a time: ${MOST}.`);
  const about = fresh.length ? fresh : views.map((view) => ({ ...view }));
  for (const file of facts) tellOf(file.name, await factsIn(file), about);
  for (const [view, mask] of pairs(masks, about)) {
    view.mask = mask;
    view.keeps = viewer.readMask(await mask.arrayBuffer());
  }
  return scanOf([...(fresh.length ? views : []), ...about], viewer);
}

/** These views as one scan. */
export function scanOf(views: View[], viewer: Viewer): Scan {
  const shown = views.map((view, index) => ({ ...located(view, viewer), tint: TINTS[index % TINTS.length] }));
  const more = views.length > 1 ? ` + ${views.length - 1}` : "";
  return { name: views[0].name + more, views: shown, points: viewer.together(shown), kept: false };
}

async function sorted(files: File[], viewer: Viewer): Promise<{ scans: File[]; masks: File[]; facts: File[] }> {
  const found: { scans: File[]; masks: File[]; facts: File[] } = { scans: [], masks: [], facts: [] };
  for (const file of [...files].sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }))) {
    if (/\.json$/i.test(file.name)) found.facts.push(file);
    else (await isMask(file, viewer) ? found.masks : found.scans).push(file);
  }
  return found;
}

async function isMask(file: File, viewer: Viewer): Promise<boolean> {
  if (!/\.png$/i.test(file.name)) return false;
  const bits = viewer.pngBits(await file.slice(0, 64).arrayBuffer());
  return bits !== null && bits <= 8;
}

async function read(file: File, viewer: Viewer): Promise<View> {
  const view: View = { id: ++made, name: file.name, file, kind: "points", points: null, depth: null, mask: null, keeps: all, note: "", tint: "", facts: NOTHING };
  const bytes = await file.arrayBuffer();
  try {
    if (DEPTH_ONLY.test(file.name)) return { ...view, kind: "depth", note: "Depth maps of this kind are not drawn here, but the service reads them." };
    if (/\.png$/i.test(file.name) || isDepthArray(file.name, bytes, viewer))
      return { ...view, kind: "depth", depth: viewer.readDepth(file.name, bytes) };
    return { ...view, points: viewer.readPoints(file.name, bytes) };
  } catch (error) {
    return { ...view, note: `Not drawn here: ${(error as Error).message}. You can send it all the same; the service will say what it makes of it.` };
  }
}

function isDepthArray(name: string, bytes: ArrayBuffer, viewer: Viewer): boolean {
  return /\.npy$/i.test(name) && ![3, 6].includes(viewer.readNpy(bytes).columns);
}

// What is left of chair1_depth.png and chair1_mask.png is the same.
const stem = (name: string): string => name.toLowerCase().replace(/\.[^.]*$/, "").replace(BESIDE, "").replace(/[^a-z0-9]/g, "");

function tellOf(name: string, facts: Partial<Facts>, views: View[]): void {
  const named = views.filter((view) => stem(view.name) === stem(name));
  const of = named.length ? named : views;
  if (of.length > 1 && (facts.pose || facts.viewpoint))
    throw new Error(`Which view is ${name} of? It tells a place, and there are ${of.length} views. Name it as its view: view1.json of view1.png.`);
  for (const view of of) view.facts = { ...view.facts, ...facts };
}

function pairs(masks: File[], views: View[]): [View, File][] {
  const maps = views.filter(({ kind }) => kind === "depth");
  if (masks.length && maps.length === 0) throw new Error("A picture of 8 bits is a mask, which goes with a depth map. Drop both together.");
  return masks.map((mask, index) => {
    const named = maps.filter((view) => stem(view.name) === stem(mask.name));
    const of = named.length === 1 ? named[0] : maps.length === masks.length ? maps[index] : null;
    if (!of) throw new Error(`Which depth map is ${mask.name} the mask of? Name it as its depth map: view1_mask.png of view1_depth.png.`);
    return [of, mask];
  });
}

// With the points of its depth map where the camera is known.
function located(view: View, viewer: Viewer): View {
  const camera = cameraOf(view.facts);
  return view.depth ? { ...view, points: camera && viewer.unproject(view.depth, camera, view.keeps) } : view;
}

/** What `up=auto` means for this scan. */
export const upOf = ({ views }: Scan, up: string): string =>
  up !== "auto" ? up : views.some(({ kind, facts }) => kind === "depth" && !facts.pose.trim()) ? "-y" : "+y";

/** A scan that the service has kept: the points as it read them. It cannot be sent again from here. */
export async function keptScan(name: string, file: File, viewer: Viewer): Promise<Scan> {
  return { ...scanOf([await read(file, viewer)], viewer), name, kept: true };
}
