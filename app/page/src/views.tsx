// What was brought, view by view, and what is told beside each.

import { useEffect, useRef } from "preact/hooks";
import { Field } from "./field";
import type { Facts } from "./facts";
import type { View } from "./scan";
import * as state from "./state";

export function Views() {
  const { views, name, kept } = state.scan.value!;
  if (views.length === 1) return <Alone view={views[0]} name={kept ? name : views[0].name} />;
  return (
    <ol class="views" aria-label="Views">
      {views.map((view) => <OneOfSeveral key={view.id} view={view} />)}
    </ol>
  );
}

function Alone({ view, name }: { view: View; name: string }) {
  return (
    <div class="summary">
      {view.depth && <Depth view={view} />}
      <div class="named">
        <p><strong>{name}</strong><br /><span class="quiet">{sizeOf(view)}</span></p>
        <Remove view={view} />
      </div>
      {view.note && <p class="quiet">{view.note}</p>}
    </div>
  );
}

function OneOfSeveral({ view }: { view: View }) {
  const changeable = state.changeable.value;
  return (
    <li>
      <i class="tint" style={{ background: view.tint }} aria-hidden="true" />
      <details class="view">
        <summary><strong>{view.name}</strong><small>{[sizeOf(view), ...lacks(view)].filter(Boolean).join(" · ")}</small></summary>
        {view.depth && <Depth view={view} />}
        {view.note && <p class="quiet">{view.note}</p>}
        {changeable && (view.kind === "depth" ? <CameraFields view={view} several /> : <Viewpoint view={view} />)}
      </details>
      <Remove view={view} />
    </li>
  );
}

function Remove({ view }: { view: View }) {
  if (!state.changeable.value) return null;
  return <button class="icon-button" aria-label={`Remove ${view.name}`} onClick={() => state.drop(view)}>×</button>;
}

function sizeOf(view: View): string {
  const pixels = view.depth ? `${view.depth.width} × ${view.depth.height} pixels` : "";
  const count = view.points ? `${view.points.total.toLocaleString("en")} points` : "";
  return [pixels, count, view.mask ? "masked" : ""].filter(Boolean).join(" · ");
}

function lacks({ kind, facts }: View): string[] {
  if (kind === "points") return [];
  return [...(facts.fx ? [] : ["needs its camera"]), ...(facts.pose.trim() ? [] : ["needs its pose"])];
}

function Depth({ view }: { view: View }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    void state.viewer.then(({ drawDepth }) => canvas.current && view.depth && drawDepth(canvas.current, view.depth, view.keeps));
  }, [view.depth, view.keeps]);
  return <canvas ref={canvas} class="depth" role="img" aria-label="Depth map: near is bright" />;
}

/** What a single view may be told, among the options. */
export function Beside({ view }: { view: View }) {
  if (view.kind === "depth") return <CameraFields view={view} />;
  return (
    <details open={view.facts.viewpoint !== ""}>
      <summary>Where the sensor stood</summary>
      <Viewpoint view={view} />
    </details>
  );
}

function Fact({ view, name, label, help, required, inputMode = "decimal" }: { view: View; name: keyof Facts; label: string; help?: string; required?: boolean; inputMode?: "decimal" | "text" }) {
  return (
    <Field label={label} help={help}>
      <input value={view.facts[name]} required={required} inputMode={inputMode} autocomplete="off" spellcheck={false}
        onChange={(event) => state.tell(view, { [name]: event.currentTarget.value })} />
    </Field>
  );
}

function CameraFields({ view, several }: { view: View; several?: boolean }) {
  const pose = <Fact view={view} name="pose" inputMode="text" label="Camera to world" help={several ? "4 rows of 4 numbers, as JSON." : "4 rows of 4 numbers, as JSON. Without it the mesh comes back in the camera's frame."} />;
  const unit = <Fact view={view} name="depthScale" label="Values per metre" help="Unless told: 1000 for whole numbers, 1 for floats." />;
  return (
    <fieldset class="camera">
      <legend>Camera, in pixels of the depth map</legend>
      <div class="four">
        {(["fx", "fy", "cx", "cy"] as const).map((name) => <Fact key={name} view={view} name={name} label={name} required={!several} />)}
      </div>
      {several ? <>{pose}{unit}</> : <details><summary>Pose and unit</summary>{pose}{unit}</details>}
    </fieldset>
  );
}

function Viewpoint({ view }: { view: View }) {
  return <Fact view={view} name="viewpoint" inputMode="text" label="x, y, z" help="Where the sensor stood, in the scan's frame. If you know it, tell it: the air before the surface is empty." />;
}
