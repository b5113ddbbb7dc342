// The request's form: the views' files, and beside them what is of each, in their order.

import type { Facts } from "./facts";
import type { Scan, View } from "./scan";

/** Throws where something is told of one view that must be told of all. */
export function formOf({ views }: Scan): FormData {
  const form = new FormData();
  const maps = views.filter(({ kind }) => kind === "depth");
  const clouds = views.filter(({ kind }) => kind === "points");
  for (const view of views) form.append("scan", view.file, view.name);
  for (const view of told(clouds, "viewpoint", "where the sensor stood")) form.append("viewpoint", vector(view.facts.viewpoint));
  for (const view of told(maps, "fx", "the camera's numbers")) form.append("intrinsics", intrinsics(view.facts));
  for (const view of told(maps, "depthScale", "the values per metre")) form.append("depth_scale", view.facts.depthScale);
  for (const view of posed(maps, views.length > 1)) form.append("camera_to_world", view.facts.pose);
  for (const view of masked(maps)) form.append("mask", view.mask!, view.mask!.name);
  return form;
}

// All of them or none: the form has no way to say that one is missing.
function told(views: View[], name: keyof Facts, words: string): View[] {
  const some = views.filter(({ facts }) => facts[name].trim());
  if (some.length && some.length < views.length) throw new Error(`Of ${without(views, some)}, ${words} is missing. Tell it of each view, or of none.`);
  return some;
}

function posed(maps: View[], several: boolean): View[] {
  const some = maps.filter(({ facts }) => facts.pose.trim());
  if (several && some.length < maps.length)
    throw new Error(`Of ${without(maps, some)}, the pose is missing. Views are put together by where each camera stood: tell "Camera to world" of each, or bring it as JSON.`);
  return some;
}

function masked(maps: View[]): View[] {
  const some = maps.filter(({ mask }) => mask);
  if (some.length && some.length < maps.length) throw new Error(`Of ${without(maps, some)}, the mask is missing. Bring one for each depth map, or for none.`);
  return some;
}

const without = (views: View[], some: View[]): string => views.filter((view) => !some.includes(view)).map(({ name }) => name).join(", ");

function vector(text: string): string {
  const numbers = text.replace(/[[\]]/g, "").trim().split(/[\s,]+/);
  return `[${numbers.join(", ")}]`;
}

const intrinsics = ({ fx, fy, cx, cy }: Facts): string => `{"fx": ${fx}, "fy": ${fy}, "cx": ${cx}, "cy": ${cy}}`;
