// The scan and how it is to be completed.

import { useEffect, useRef } from "preact/hooks";
import type { ComponentChildren } from "preact";
import type { Example } from "./api";
import type { Facts } from "./scan";
import * as state from "./state";

const ACCEPTED = ".ply,.xyz,.txt,.csv,.npy,.npz,.pcd,.las,.laz,.obj,.off,.stl,.glb,.png,.tif,.tiff,.exr,.json";

export function ScanCard() {
  const scan = state.scan.value;
  const input = useRef<HTMLInputElement>(null);
  const pick = () => {
    void state.bring([...(input.current?.files ?? [])]);
    if (input.current) input.current.value = ""; // so that the same file can be picked again
  };
  return (
    <section class="card" aria-labelledby="scan-title">
      <h2 id="scan-title">Scan</h2>
      {scan ? <Summary /> : <p class="lead">One object, seen from one side or more. The rest of it is what comes back.</p>}
      <div class="row">
        <button class={scan ? "" : "primary"} onClick={() => input.current?.click()}>{scan ? "Another scan…" : "Choose a scan…"}</button>
        {!scan && <span class="quiet">or drop it anywhere</span>}
      </div>
      <input ref={input} class="heard" type="file" multiple accept={ACCEPTED} onChange={pick} aria-label="Scan files" tabIndex={-1} />
      {!scan && <small>Points: PLY, PCD, LAS, XYZ, CSV, NPY, OBJ, STL, GLB. Depth maps: PNG, TIFF, EXR, with a mask and a JSON of the camera beside them.</small>}
      {!scan && <Examples />}
    </section>
  );
}

function Examples() {
  if (state.examples.value.length === 0) return null;
  return (
    <div class="examples">
      <span class="quiet">Nothing at hand? Try one of these.</span>
      {state.examples.value.map((example) => (
        <button key={example.name} class="chip" disabled={state.reading.value !== ""} onClick={() => state.bringExample(example)}>
          {words(example)}
        </button>
      ))}
    </div>
  );
}

const words = (example: Example): string => `${example.name[0].toUpperCase()}${example.name.slice(1)}, ${example.mask ? "depth map" : "points"}`;

function Summary() {
  const scan = state.scan.value!;
  const size = scan.depth ? `${scan.depth.width} × ${scan.depth.height} pixels` : "";
  const count = scan.points ? `${scan.points.total.toLocaleString("en")} points` : "";
  return (
    <div class="summary">
      {scan.depth && <Depth />}
      <p><strong>{scan.name}</strong><br /><span class="quiet">{[size, count, scan.mask ? "masked" : ""].filter(Boolean).join(" · ")}</span></p>
      {scan.note && <p class="quiet">{scan.note}</p>}
    </div>
  );
}

function Depth() {
  const scan = state.scan.value!;
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    void state.viewer.then(({ drawDepth }) => canvas.current && scan.depth && drawDepth(canvas.current, scan.depth, scan.keeps));
  }, [scan.depth, scan.keeps]);
  return <canvas ref={canvas} class="depth" role="img" aria-label="Depth map: near is bright" />;
}

export function OptionsCard() {
  const scan = state.scan.value;
  if (!scan) return null;
  const choice = state.choice.value;
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    void state.complete();
  };
  return (
    <form class="card" onSubmit={submit} aria-labelledby="options-title">
      <h2 id="options-title">Completion</h2>
      <Field label="Model" help={state.models.value.find(({ name }) => name === choice.model)?.description}>
        <select value={choice.model} onChange={(event) => state.choose({ model: event.currentTarget.value })}>
          {state.models.value.map(({ name }) => <option key={name}>{name}</option>)}
        </select>
      </Field>
      <Choices name="resolution" label="Quality" values={[["64", "Draft"], ["128", "Standard"], ["256", "Fine"]]} />
      <Choices name="pose" label="Which turns are tried" values={[["upright", "About the vertical"], ["free", "All"], ["canonical", "None"]]} />
      <div class="pair">
        <Field label="Up">
          <select value={choice.up} onChange={(event) => state.choose({ up: event.currentTarget.value })}>
            <option value="auto">by the format</option>
            {["+y", "-y", "+z", "-z", "+x", "-x"].map((up) => <option key={up} value={up}>{up.replace("-", "−")}</option>)}
          </select>
        </Field>
        <Field label="Alternatives">
          <select value={choice.samples} onChange={(event) => state.choose({ samples: event.currentTarget.value })}>
            {["0", "2", "4", "8"].map((count) => <option key={count} value={count}>{count === "0" ? "none" : count}</option>)}
          </select>
        </Field>
      </div>
      <label class="check">
        <input type="checkbox" checked={choice.plane} onChange={(event) => state.choose({ plane: event.currentTarget.checked })} />
        It stands on a floor or table: cut that off
      </label>
      {scan.kind === "depth" ? <CameraFields /> : <Sensor />}
      <button class="primary wide" type="submit" disabled={state.sending.value || choice.model === ""}>
        {state.sending.value ? "Sending…" : "Complete it"}
      </button>
    </form>
  );
}

type ChoiceName = "resolution" | "pose";

function Choices({ name, label, values }: { name: ChoiceName; label: string; values: [string, string][] }) {
  return (
    <fieldset class="choices">
      <legend>{label}</legend>
      <div>
        {values.map(([value, words]) => (
          <label key={value}>
            <input type="radio" name={name} value={value} checked={state.choice.value[name] === value} onChange={() => state.choose({ [name]: value })} />
            <span>{words}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

function Field({ label, help, children }: { label: string; help?: string; children: ComponentChildren }) {
  return <label class="field"><span>{label}</span>{children}{help && <small>{help}</small>}</label>;
}

function Fact({ name, label, help, required, inputMode = "decimal" }: { name: keyof Facts; label: string; help?: string; required?: boolean; inputMode?: "decimal" | "text" }) {
  return (
    <Field label={label} help={help}>
      <input value={state.scan.value!.facts[name]} required={required} inputMode={inputMode} autocomplete="off" spellcheck={false}
        onChange={(event) => state.tell({ [name]: event.currentTarget.value })} />
    </Field>
  );
}

function CameraFields() {
  return (
    <fieldset class="camera">
      <legend>Camera, in pixels of the depth map</legend>
      <div class="four">
        {(["fx", "fy", "cx", "cy"] as const).map((name) => <Fact key={name} name={name} label={name} required />)}
      </div>
      <details>
        <summary>Pose and unit</summary>
        <Fact name="pose" inputMode="text" label="Camera to world" help="4 rows of 4 numbers, as JSON. Without it the mesh comes back in the camera's frame." />
        <Fact name="depthScale" label="Values per metre" help="Unless told: 1000 for whole numbers, 1 for floats." />
      </details>
    </fieldset>
  );
}

function Sensor() {
  return (
    <details open={state.scan.value!.facts.viewpoint !== ""}>
      <summary>Where the sensor stood</summary>
      <Fact name="viewpoint" inputMode="text" label="x, y, z" help="In the scan's frame. If you know it, tell it: the air before the surface is empty." />
    </details>
  );
}
