// What the page knows, and all that can be done on it. The components show the first and call the second.

import { computed, effect, signal } from "@preact/signals";
import * as api from "./api";
import { forget, note, remember, type Past } from "./history";
import { OF_CAMERA, type Facts } from "./facts";
import { formOf } from "./form";
import { keptScan, openScan, scanOf, upOf, type Scan, type View } from "./scan";
import type { Shape, Stage } from "./stage";

export const viewer = import("./stage");

export interface Choice {
  model: string;
  pose: string;
  up: string;
  resolution: string;
  samples: string;
  plane: boolean;
}

export interface Job {
  id: string;
  name: string;
  now: api.Completion;
  curve: number[]; // residuals, one for each step seen
}

/** The way from the completion shown to another one. */
export interface Way {
  to: Past;
  now: api.Interpolation;
  step: number; // 1 is the completion shown, STEPS the other one
}

export const STEPS = 7;

export interface Trouble {
  title: string;
  detail: string;
  code: string;
}

export const models = signal<api.Model[]>([]);
export const examples = signal<api.Example[]>([]);
export const scan = signal<Scan | null>(null);
export const choice = signal<Choice>({ model: "", pose: "upright", up: "auto", resolution: "128", samples: "0", plane: false });
export const job = signal<Job | null>(null);
export const sending = signal(false);
export const reading = signal("");
export const silent = signal(false); // the service, while a completion is watched
export const trouble = signal<Trouble | null>(null);
export const needsKey = signal(false);
export const stage = signal<Stage | null>(null);
export const shape = signal<Shape | null>(null);
export const coarse = signal(false);
export const sample = signal(0);
export const way = signal<Way | null>(null);
export const shown = signal({ scan: true, mesh: true, unsure: false });
export const running = computed(() => job.value !== null && !api.hasEnded(job.value.now));
/** Whether the scan may be changed: it is here as it was brought, and no completion of it is shown. */
export const changeable = computed(() => scan.value !== null && !scan.value.kept && job.value === null);
export const done = computed(() => job.value?.now.status === "succeeded");

let watching = new AbortController();
let retry: (() => Promise<void>) | null = null;
const scans = new Map<string, Scan>(); // of the completions of this visit
const shapes = new Map<string, Shape>(); // by completion and sample

effect(() => stage.value?.show(shown.value));
effect(() => {
  if (stage.value && scan.value) stage.value.stand(upOf(scan.value, choice.value.up));
});

/** Do something that may fail, and say so if it does. */
async function attempt(what: () => Promise<void>): Promise<void> {
  trouble.value = null;
  try {
    await what();
  } catch (error) {
    if (error instanceof api.Problem && error.status === 401) {
      needsKey.value = true;
      retry = what;
    }
    trouble.value = troubleOf(error);
  }
}

function troubleOf(error: unknown): Trouble {
  if (!(error instanceof api.Problem)) return { title: "That did not work", detail: (error as Error).message, code: "" };
  const titles: Record<number, string> = {
    0: "No answer",
    400: "Not as the service wants it",
    403: "Not allowed",
    401: "This service wants an API key",
    404: "Not there any more",
    410: "Not kept any more",
    413: "Too large",
    415: "Unknown format",
    422: "The scan cannot be used",
    429: "Too much at once",
    500: "The service broke",
    502: "Out of reach",
    503: "Not ready",
    504: "Out of reach",
  };
  return { title: titles[error.status] ?? error.title, detail: error.message, code: error.code };
}

/** Ask the service what it has. */
export const start = (): Promise<void> =>
  attempt(async () => {
    examples.value = await api.examples().catch(() => []);
    models.value = await api.models();
    const names = models.value.map(({ name }) => name);
    if (!names.includes(choice.value.model)) choose({ model: names.includes("chairs") ? "chairs" : (names[0] ?? "") });
  });

/** Use an API key, and do again what was refused without. */
export async function enterKey(key: string): Promise<void> {
  api.useKey(key);
  needsKey.value = false;
  const again = retry;
  retry = null;
  await start();
  if (again && !needsKey.value) await attempt(again);
}

export const choose = (change: Partial<Choice>): void => {
  choice.value = { ...choice.value, ...change };
};

/** Show files that the user has brought, as a new scan or as further views of the one that is there. */
export const bring = (files: File[], adds = false): Promise<void> =>
  attempt(async () => {
    if (files.length === 0) return;
    reading.value = files.length > 1 ? `${files.length} files` : files[0].name;
    try {
      lay(await openScan(files, changeable.value ? scan.value!.views : [], adds, await viewer));
    } finally {
      reading.value = "";
    }
  });

/** Show one of the service's own examples. */
export const bringExample = (example: api.Example): Promise<void> =>
  attempt(async () => {
    reading.value = example.name;
    try {
      const names = [example.scan, ...(example.mask ? [example.mask] : []), `${example.name}.json`];
      lay(await openScan(await Promise.all(names.map(api.exampleFile)), [], false, await viewer));
      choose({ up: "auto" });
    } finally {
      reading.value = "";
    }
  });

function lay(next: Scan): void {
  leave();
  scan.value = next;
  stage.value?.showPoints(next.points, upOf(next, choice.value.up));
}

/** Change what is told beside a view's file. Views of the same camera, so far, have the same still. */
export async function tell(of: View, change: Partial<Facts>): Promise<void> {
  if (!scan.value) return;
  const views = scan.value.views.map((view) => ({ ...view, facts: { ...view.facts, ...(view.id === of.id ? change : shared(of, view, change)) } }));
  scan.value = scanOf(views, await viewer);
  if (of.depth) stage.value?.showPoints(scan.value.points, upOf(scan.value, choice.value.up));
}

function shared(of: View, other: View, change: Partial<Facts>): Partial<Facts> {
  const names = OF_CAMERA.filter((name) => name in change && other.kind === "depth" && other.facts[name] === of.facts[name]);
  return Object.fromEntries(names.map((name) => [name, change[name]]));
}

/** Take a view off; with the last one the scan is gone. */
export async function drop(of: View): Promise<void> {
  const left = scan.value?.views.filter(({ id }) => id !== of.id) ?? [];
  trouble.value = null;
  if (left.length) lay(scanOf(left, await viewer));
  else clear();
}

function clear(): void {
  scan.value = null;
  stage.value?.showPoints(null, "+y");
}

/** Take the completion off the page; it goes on without it. */
export function leave(): void {
  watching.abort();
  silent.value = false;
  job.value = null;
  shape.value = null;
  for (const { geometry } of shapes.values()) geometry.dispose();
  shapes.clear();
  coarse.value = false;
  sample.value = 0;
  way.value = null;
  shown.value = { scan: true, mesh: true, unsure: false };
  stage.value?.showShape(null);
  if (scan.value?.kept) clear();
}

/** Send the scan, and watch what becomes of it. */
export const complete = (): Promise<void> =>
  attempt(async () => {
    const sent = scan.value;
    if (!sent || sent.kept || sending.value) return;
    const form = formOf(sent);
    sending.value = true;
    try {
      leave();
      const now = await api.submit(form, optionsOf(choice.value));
      scans.set(now.id, sent);
      remember({ id: now.id, name: sent.name, model: choice.value.model, status: now.status, at: now.created_at });
      follow(now, sent.name);
    } finally {
      sending.value = false;
    }
  });

function optionsOf({ model, pose, up, resolution, samples, plane }: Choice): Record<string, string> {
  return { model, pose, up, resolution, samples, ...(plane ? { remove_plane: "true" } : {}) };
}

/** Show an earlier completion of this browser. */
export const reopen = (item: Past): Promise<void> =>
  attempt(async () => {
    leave();
    clear();
    try {
      const now = await api.find(item.id);
      const file = scans.has(item.id) ? null : await api.scanFile(item.id).catch(() => null);
      scan.value = scans.get(item.id) ?? (file && (await keptScan(item.name, file, await viewer)));
      if (scan.value) stage.value?.showPoints(scan.value.points, upOf(scan.value, now.options.up));
      follow(now, item.name);
    } catch (error) {
      if (error instanceof api.Problem && [404, 410].includes(error.status)) note(item.id, { status: "expired" });
      throw error;
    }
  });

function follow(first: api.Completion, name: string): void {
  watching = new AbortController();
  const { signal: stop } = watching;
  job.value = { id: first.id, name, now: first, curve: [] };
  const heard = (now: api.Completion) => {
    if (stop.aborted || !job.value) return;
    const stepped = now.phase === "fit" && now.residual !== null && now.step !== job.value.now.step;
    const curve = stepped ? [...job.value.curve, now.residual!] : job.value.curve;
    const newer = (now.preview ?? 0) > (job.value.now.preview ?? 0);
    job.value = { ...job.value, now, curve };
    note(now.id, { status: now.status });
    if (newer && !api.hasEnded(now)) void peek(now, stop);
    if (now.status === "succeeded") void attempt(() => showSample(0));
    if (now.status === "failed" && now.error)
      trouble.value = { title: "The completion failed", detail: now.error.detail, code: now.error.code };
  };
  if (api.hasEnded(first)) heard(first);
  else void attempt(() => api.watch(first.id, heard, (yes) => (silent.value = !yes), stop));
}

// The coarse mesh that the fit is at. One that has not come in time is left out.
async function peek(now: api.Completion, stop: AbortSignal): Promise<void> {
  try {
    const found = await (await viewer).readShape(await api.previewFile(now.id));
    if (stop.aborted || done.value) return;
    shape.value = found;
    coarse.value = true;
    stage.value?.showShape(found, true);
  } catch {
    // The next one will do.
  }
}

/** Show the completion itself (0) or one of its alternatives. */
export async function showSample(number: number): Promise<void> {
  const of = job.value;
  if (!of) return;
  sample.value = number;
  const key = `${of.id}/${number}`;
  const found = shapes.get(key) ?? (await (await viewer).readShape(await api.meshFile(of.id, "glb", number)));
  shapes.set(key, found);
  if (job.value?.id !== of.id || sample.value !== number) return;
  const first = shape.value === null && !scan.value;
  shape.value = found;
  coarse.value = false;
  stage.value?.showShape(found);
  if (first) stage.value?.home();
  if (number === 0 && stage.value) note(of.id, { picture: stage.value.picture() });
}

export const pickSample = (number: number): Promise<void> => attempt(() => showSample(number));

/** Find the way to another completion, and show its first step. */
export const findWay = (to: Past): Promise<void> =>
  attempt(async () => {
    const of = job.value;
    if (!of) return;
    let now = await api.interpolate(of.now.options.model, of.id, to.id, STEPS);
    const { id } = now;
    way.value = { to, now, step: 1 };
    while (way.value?.now.id === id && !api.hasEnded(now)) {
      await api.pause(300);
      now = await api.findInterpolation(id);
      if (way.value?.now.id === id) way.value = { ...way.value, now };
    }
    if (way.value?.now.id !== id) return;
    if (now.status === "succeeded") return showStep(1, true);
    way.value = null;
    throw new Error(now.error?.detail ?? "The way there was cancelled.");
  });

async function showStep(step: number, first = false): Promise<void> {
  if (!way.value) return;
  const { id } = way.value.now;
  way.value = { ...way.value, step };
  const key = `${id}/${step}`;
  const found = shapes.get(key) ?? (await (await viewer).readShape(await api.stepFile(id, step)));
  shapes.set(key, found);
  if (way.value?.now.id !== id || way.value.step !== step) return;
  shown.value = { scan: false, mesh: true, unsure: false }; // the scan stands in another frame
  shape.value = found;
  stage.value?.showShape(found);
  if (first) stage.value?.home();
}

export const pickStep = (step: number): Promise<void> => attempt(() => showStep(step));

/** Back from the way to the completion. */
export const leaveWay = (): Promise<void> =>
  attempt(async () => {
    way.value = null;
    shown.value = { scan: true, mesh: true, unsure: false };
    await showSample(0);
    stage.value?.home();
  });

/** End the completion early. */
export const stopJob = (): Promise<void> =>
  attempt(async () => {
    if (job.value) await api.cancel(job.value.id);
  });

/** Save what is shown, the completion, an alternative or a step of the way; or the report. */
export const download = (format: api.Format | "json"): Promise<void> =>
  attempt(async () => {
    const of = job.value;
    if (!of) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await fileOf(of, format));
    const step = way.value ? `to-${stemOf(way.value.to.name)}-${way.value.step}` : sample.value ? `alternative-${sample.value}` : "completed";
    link.download = `${stemOf(of.name)}-${format === "json" ? "report" : step}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });

function fileOf({ id }: Job, format: api.Format | "json"): Promise<Blob> {
  if (format === "json") return api.reportFile(id);
  return way.value ? api.stepFile(way.value.now.id, way.value.step, format) : api.meshFile(id, format, sample.value);
}

const stemOf = (name: string): string => name.replace(/\.\w+( \+ \d+)?$/, "");

/** Take a completion off the list, and off the service where it can forget. */
export const discard = (item: Past): Promise<void> =>
  attempt(async () => {
    forget(item.id);
    if (job.value?.id === item.id) leave();
    await api.remove(item.id).catch((error) => {
      if (!(error instanceof api.Problem) || ![404, 405, 410].includes(error.status)) throw error;
    });
  });

/** Show this stage what the page knows, when it is there at last. */
export function mount(made: Stage): void {
  stage.value = made;
  if (scan.value) made.showPoints(scan.value.points, upOf(scan.value, choice.value.up));
  if (shape.value) made.showShape(shape.value, coarse.value);
}
