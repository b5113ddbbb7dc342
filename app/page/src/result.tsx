// A completion while it runs, and what came of it.

import { useEffect, useRef } from "preact/hooks";
import { hasEnded } from "./api";
import { past } from "./history";
import * as state from "./state";

const PHASES: [string, string][] = [
  ["read", "Read"],
  ["observe", "Look"],
  ["fit", "Fit"],
  ["refine", "Refine"],
  ["mesh", "Mesh"],
  ["export", "Write"],
];

export function RunCard() {
  const job = state.job.value;
  return job && job.now.status !== "succeeded" ? <Run job={job} /> : null;
}

// Takes the focus that was on a button which is gone, so that the keyboard goes on from here.
function useFocus() {
  const place = useRef<HTMLElement>(null);
  useEffect(() => {
    if (document.activeElement === document.body) place.current?.focus({ preventScroll: true });
  }, []);
  return place;
}

function Run({ job }: { job: state.Job }) {
  const place = useFocus();
  const { now } = job;
  const at = PHASES.findIndex(([phase]) => phase === now.phase);
  return (
    <section ref={place} tabIndex={-1} class="card" aria-labelledby="run-title">
      <h2 id="run-title">{headline()}</h2>
      {!hasEnded(now) && <progress max={1} value={now.progress} aria-label="Progress" />}
      {now.status === "running" && (
        <ol class="phases">
          {PHASES.map(([phase, words], index) => (
            <li key={phase} class={index < at ? "gone" : index === at ? "now" : ""} aria-current={index === at ? "step" : undefined}>{words}</li>
          ))}
        </ol>
      )}
      <Curve residuals={job.curve} />
      {state.silent.value && <p role="status">The service does not answer at the moment. It is asked again and again; the completion goes on there.</p>}
      {now.attempt > 1 && <p class="quiet">A worker broke; this is attempt {now.attempt}.</p>}
      <div class="row">
        {!hasEnded(now) && <button onClick={state.stopJob}>Cancel</button>}
        {hasEnded(now) && <button class="primary" onClick={state.leave}>{state.scan.value?.kept ? "Close" : "Back to the options"}</button>}
      </div>
    </section>
  );
}

function headline(): string {
  const { now } = state.job.value!;
  if (now.status === "queued") return now.queue_position && now.queue_position > 1 ? `Waiting, ${now.queue_position - 1} before it` : "Waiting for a worker";
  if (now.status === "running") return `${Math.round(100 * now.progress)} % done`;
  return { cancelled: "Cancelled", failed: "No mesh", expired: "Not kept any more" }[now.status as string] ?? now.status;
}

const [WIDE, HIGH] = [300, 72];

// Residuals fall by powers of ten, so the curve is one of their logarithms.
function Curve({ residuals }: { residuals: number[] }) {
  const logs = residuals.filter((residual) => residual > 0).map(Math.log10);
  if (logs.length < 2) return null;
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const point = (log: number, index: number) =>
    `${((WIDE * index) / (logs.length - 1)).toFixed(1)},${(4 + (HIGH - 8) * (high > low ? (high - log) / (high - low) : 0.5)).toFixed(1)}`;
  const last = residuals[residuals.length - 1];
  return (
    <figure class="curve">
      <svg viewBox={`0 0 ${WIDE} ${HIGH}`} preserveAspectRatio="none" role="img" aria-label={`Misfit, now ${(100 * last).toFixed(2)} percent of the radius`}>
        <polyline points={logs.map(point).join(" ")} />
      </svg>
      <figcaption><span>Misfit to what was seen</span><span>{(100 * last).toFixed(2)} % of the radius</span></figcaption>
    </figure>
  );
}

export function ResultCard() {
  const job = state.job.value;
  return job && job.now.status === "succeeded" ? <Result job={job} /> : null;
}

function Result({ job }: { job: state.Job }) {
  const place = useFocus();
  const report = job.now.report ?? {};
  return (
    <section ref={place} tabIndex={-1} class="card" aria-labelledby="result-title">
      <h2 id="result-title">Completed {report.grade && <span class={`grade ${report.grade}`}>{report.grade}</span>}</h2>
      {report.verdict && <p class="verdict">{report.verdict}</p>}
      {job.now.warnings.map((words) => <p key={words} class="quiet">{words}</p>)}
      {!state.way.value && <Alternatives count={job.now.options.samples} />}
      <WayTo />
      <Downloads />
      {!state.way.value && <Facts report={report} />}
      <button class="wide" onClick={state.leave}>{state.scan.value && !state.scan.value.kept ? "Change the options" : "Close"}</button>
    </section>
  );
}

function Alternatives({ count }: { count: number }) {
  if (count === 0) return null;
  const number = state.sample.value;
  return (
    <label class="field slider">
      <span>{number === 0 ? "The completion" : `Alternative ${number} of ${count}`}</span>
      <input type="range" min={0} max={count} step={1} value={number} aria-label="Alternative completions"
        aria-valuetext={number === 0 ? "the completion" : `alternative ${number}`}
        onInput={(event) => state.pickSample(Number(event.currentTarget.value))} />
      <small>All of them agree with what was seen; where they differ, the scan leaves it open.</small>
    </label>
  );
}

function WayTo() {
  const way = state.way.value;
  const job = state.job.value!;
  const others = past.value.filter((item) => item.status === "succeeded" && item.id !== job.id && item.model === job.now.options.model);
  if (way) return <Steps way={way} />;
  if (others.length === 0) return null;
  const pick = (event: { currentTarget: HTMLSelectElement }) => {
    const found = others.find(({ id }) => id === event.currentTarget.value);
    if (found) void state.findWay(found);
  };
  return (
    <label class="field">
      <span>The way to another one</span>
      <select value="" onChange={pick}>
        <option value="">choose…</option>
        {others.map(({ id, name, at }) => <option key={id} value={id}>{name}, {new Date(at).toLocaleTimeString(undefined, { timeStyle: "short" })}</option>)}
      </select>
    </label>
  );
}

function Steps({ way }: { way: state.Way }) {
  const there = way.now.status === "succeeded";
  return (
    <div class="field slider">
      <span>The way to {way.to.name}</span>
      {there ? (
        <input type="range" min={1} max={state.STEPS} step={1} value={way.step} aria-label={`The way to ${way.to.name}`}
          onInput={(event) => state.pickStep(Number(event.currentTarget.value))} />
      ) : (
        <progress max={1} value={way.now.progress} aria-label="Progress of the way" />
      )}
      <small>Shapes whose codes lie between the two, in the model's own frame.</small>
      <button onClick={state.leaveWay}>Back to the completion</button>
    </div>
  );
}

function Downloads() {
  return (
    <div class="downloads" role="group" aria-label="Download">
      <button class="primary" onClick={() => state.download("glb")}>Download GLB</button>
      {(["ply", "obj", "stl"] as const).map((format) => <button key={format} onClick={() => state.download(format)}>{format.toUpperCase()}</button>)}
      {!state.way.value && <button onClick={() => state.download("json")}>Report</button>}
    </div>
  );
}

const three = (value: number): string => Number(value.toPrecision(3)).toString();

function Facts({ report }: { report: Record<string, any> }) {
  const deviation = state.shape.value?.deviation?.median ?? report.deviation_median;
  const { started_at, ended_at } = state.job.value!.now;
  const seconds = started_at && ended_at ? (Date.parse(ended_at) - Date.parse(started_at)) / 1000 : null;
  const facts: [string, string | null][] = [
    ["Faces", state.shape.value ? state.shape.value.faces.toLocaleString("en") : null],
    ["Watertight", report.watertight === undefined ? null : report.watertight ? "yes" : "no"],
    ["Size, scan's unit", Array.isArray(report.size) ? report.size.map(three).join(" × ") : null],
    ["Sure to ±, scan's unit", deviation == null ? null : three(deviation)],
    ["Time", seconds === null ? null : `${three(seconds)} s`],
  ];
  return (
    <dl class="facts">
      {facts.filter(([, value]) => value !== null).map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}
