// The service's HTTP API, as far as this page speaks it. Knows no DOM and no three.js.

export type Status = "queued" | "running" | "succeeded" | "failed" | "cancelled" | "expired";

export interface Completion {
  id: string;
  status: Status;
  options: Record<string, unknown> & { model: string; up: string; samples: number };
  phase: string | null;
  step: number;
  steps: number;
  residual: number | null;
  progress: number;
  queue_position: number | null;
  attempt: number;
  preview?: number;
  warnings: string[];
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
  report: Record<string, any> | null;
  error: { code: string; detail: string } | null;
}

/** The way from one completion to another, as meshes in the model's canonical frame. */
export interface Interpolation {
  id: string;
  status: Status;
  progress: number;
  error: { code: string; detail: string } | null;
}

export interface Model {
  name: string;
  description: string;
  category: string;
}

export interface Example {
  name: string;
  scan: string;
  mask?: string;
  author?: string;
  licence?: string;
  form: Record<string, string>;
}

export type Format = "glb" | "ply" | "obj" | "stl";

export const hasEnded = ({ status }: { status: Status }): boolean => status !== "queued" && status !== "running";

/** What the service answered instead of doing it: problem+json, or as much of it as there was. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly title: string,
    detail: string,
  ) {
    super(detail);
  }
}

const KEY = "deepsdf.key";
const remembered = (() => {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is forbidden here: the key lasts as long as the page
  }
})();
let key = remembered;

/** Send this API key from now on, until the tab is closed. */
export function useKey(given: string): void {
  key = given.trim();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // as above
  }
}

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let answer: Response;
  try {
    answer = await fetch(path, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(0, "unreachable", "No answer", "The service does not answer. Is it running?");
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer: Response): Promise<Problem> {
  try {
    const told = await answer.json();
    return new Problem(answer.status, told.code ?? "", told.title ?? answer.statusText, told.detail ?? "");
  } catch {
    return new Problem(answer.status, "", answer.statusText, `The service, or a server before it, answered ${answer.status}. Try again in a moment.`);
  }
}

const json = async <T>(path: string, init?: RequestInit): Promise<T> => (await call(path, init)).json();

export const models = async (): Promise<Model[]> => (await json<{ models: Model[] }>("v1/models")).models;
export const examples = async (): Promise<Example[]> => (await json<{ examples: Example[] }>("page/examples")).examples;
export const exampleFile = async (name: string): Promise<File> =>
  new File([await (await call(`page/examples/${encodeURIComponent(name)}`)).blob()], name);
export const find = (id: string): Promise<Completion> => json(`v1/completions/${id}`);
export const cancel = (id: string): Promise<Completion> => json(`v1/completions/${id}/cancel`, { method: "POST" });
export const remove = (id: string): Promise<Response> => call(`v1/completions/${id}`, { method: "DELETE" });
export const meshFile = async (id: string, format: Format, sample = 0): Promise<Blob> =>
  (await call(`v1/completions/${id}/mesh?format=${format}&sample=${sample}`)).blob();
export const previewFile = async (id: string): Promise<Blob> =>
  (await call(`v1/completions/${id}/preview`, { cache: "no-store" })).blob();
export const scanFile = async (id: string): Promise<File> =>
  new File([await (await call(`v1/completions/${id}/scan`)).blob()], "scan.ply");
export const reportFile = async (id: string): Promise<Blob> => (await call(`v1/completions/${id}/report`)).blob();

export const interpolate = (model: string, from: string, to: string, count: number): Promise<Interpolation> =>
  json("v1/interpolations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, start: { completion: from }, end: { completion: to }, count, resolution: 64 }),
  });
export const findInterpolation = (id: string): Promise<Interpolation> => json(`v1/interpolations/${id}`);
export const stepFile = async (id: string, number: number, format: Format = "glb"): Promise<Blob> =>
  (await call(`v1/interpolations/${id}/mesh?number=${number}&format=${format}`)).blob();

/** Send a scan. The key makes the request safe to send again: a second one finds the first one's completion. */
export async function submit(form: FormData, options: Record<string, string>): Promise<Completion> {
  const request = { method: "POST", body: form, headers: { "Idempotency-Key": unique() } };
  const path = `v1/completions?${new URLSearchParams(options)}`;
  try {
    return await json(path, request);
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 0) throw error;
    await pause(1000);
    return json(path, request);
  }
}

// crypto.randomUUID exists only on HTTPS and on this machine.
const unique = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const pause = (ms: number, stop?: AbortSignal): Promise<void> =>
  new Promise((done) => {
    setTimeout(done, ms);
    stop?.addEventListener("abort", () => done(), { once: true });
  });

/** Tell each state of a completion until it has ended, by server-sent events where the service has them; and whether it answers at all. */
export async function watch(id: string, tell: (now: Completion) => void, answers: (yes: boolean) => void, stop: AbortSignal): Promise<void> {
  let ended = false;
  const heard = (now: Completion) => {
    ended = hasEnded(now);
    answers(true);
    tell(now);
  };
  try {
    await listen(id, heard, stop);
  } catch (error) {
    if (stop.aborted) return;
    if (error instanceof Problem && [401, 403, 410].includes(error.status)) throw error;
    // No such endpoint, or the connection broke: ask instead.
  }
  while (!ended && !stop.aborted) {
    try {
      heard(await find(id));
    } catch (error) {
      if (!(error instanceof Problem) || (error.status !== 0 && error.status < 500)) throw error;
      answers(false);
    }
    if (!ended) await pause(400, stop);
  }
}

// Not EventSource, which cannot send an API key.
async function listen(id: string, heard: (now: Completion) => void, stop: AbortSignal): Promise<void> {
  const answer = await call(`v1/completions/${id}/events`, {
    headers: { Accept: "text/event-stream" },
    signal: stop,
  });
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const now = eventOf(text.slice(0, end));
      text = text.slice(end + 2);
      if (!now) continue;
      heard(now);
      if (hasEnded(now)) return void reader.cancel();
    }
  }
}

function eventOf(block: string): Completion | null {
  const data = block.split("\n").filter((line) => line.startsWith("data:"));
  const told = data.length ? JSON.parse(data.map((line) => line.slice(5)).join("\n")) : null;
  return told?.status ? told : null;
}
