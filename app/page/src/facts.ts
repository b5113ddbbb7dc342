// What is told beside a file: numbers of its camera and its place, as the fields of the form hold them.

import type { Camera } from "./stage";

export interface Facts {
  viewpoint: string;
  fx: string;
  fy: string;
  cx: string;
  cy: string;
  depthScale: string;
  pose: string; // camera to world, JSON
}

export const NOTHING: Facts = { viewpoint: "", fx: "", fy: "", cx: "", cy: "", depthScale: "", pose: "" };

const FOCAL = ["fx", "fy", "cx", "cy"] as const;
/** What views of one camera have in common. */
export const OF_CAMERA = [...FOCAL, "depthScale"] as const;

/** The facts in a JSON file: our own examples', Open3D's camera, a 3×3 matrix, or fx, fy, cx, cy. */
export async function factsIn(file: File): Promise<Partial<Facts>> {
  let told: any;
  try {
    told = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} cannot be read as JSON. Bring a file such as {"fx": 525, "fy": 525, "cx": 319.5, "cy": 239.5}.`);
  }
  const facts = factsOf(told);
  if (Object.keys(facts).length === 0) throw new Error(`${file.name} tells nothing of a camera: no fx, fy, cx, cy, no intrinsic_matrix, no camera_to_world, no viewpoint.`);
  return facts;
}

function factsOf(told: any): Partial<Facts> {
  const facts: Partial<Facts> = {};
  const numbers = focalOf(told.intrinsics ?? told.intrinsic ?? told);
  for (const name of FOCAL) if (numbers[name] !== undefined) facts[name] = String(numbers[name]);
  const pose = told.camera_to_world ?? (told.extrinsic && inverted(told.extrinsic));
  if (told.viewpoint) facts.viewpoint = told.viewpoint.join(", ");
  if (told.depth_scale) facts.depthScale = String(told.depth_scale);
  if (pose) facts.pose = JSON.stringify(pose);
  return facts;
}

// A matrix goes row by row, Open3D's `intrinsic_matrix` column by column.
function focalOf(camera: any): Partial<Record<(typeof FOCAL)[number], number>> {
  const byColumn = camera?.intrinsic_matrix;
  if (byColumn) return { fx: byColumn[0], fy: byColumn[4], cx: byColumn[6], cy: byColumn[7] };
  const byRow = Array.isArray(camera) ? camera.flat() : [];
  return byRow.length === 9 ? { fx: byRow[0], fy: byRow[4], cx: byRow[2], cy: byRow[5] } : (camera ?? {});
}

// Open3D's extrinsic is world to camera, column by column: 16 numbers.
function inverted(byColumn: number[]): number[][] {
  const turn = [0, 1, 2].map((row) => [0, 1, 2].map((column) => byColumn[4 * row + column])); // transposed
  const moved = turn.map((row) => -row.reduce((sum, value, i) => sum + value * byColumn[12 + i], 0));
  return [...turn.map((row, i) => [...row, moved[i]]), [0, 0, 0, 1]];
}

/** The camera that the facts tell of, null where its numbers are missing. A pose that is none is left to the service. */
export function cameraOf(facts: Facts): Camera | null {
  const [fx, fy, cx, cy] = FOCAL.map((name) => (facts[name].trim() ? Number(facts[name]) : NaN));
  if (![fx, fy, cx, cy].every(Number.isFinite)) return null;
  return { fx, fy, cx, cy, pose: poseOf(facts.pose), perMetre: Number(facts.depthScale) || null };
}

function poseOf(text: string): number[][] | null {
  try {
    const flat: number[] = JSON.parse(text).flat();
    return flat.length === 16 && flat.every(Number.isFinite) ? [0, 4, 8, 12].map((start) => flat.slice(start, start + 4)) : null;
  } catch {
    return null;
  }
}
