// The scan and how it is to be completed.

import { useRef } from "preact/hooks";
import type { Example } from "./api";
import { Field } from "./field";
import * as state from "./state";
import { Beside, Views } from "./views";

const ACCEPTED = ".ply,.xyz,.txt,.csv,.npy,.npz,.pcd,.las,.laz,.e57,.obj,.off,.stl,.glb,.png,.tif,.tiff,.exr,.json";

export function ScanCard() {
  const scan = state.scan.value;
  return (
    <section class="card" aria-labelledby="scan-title">
      <h2 id="scan-title">Scan</h2>
      {scan ? <Views /> : <p class="lead">One object, seen from one side or more. The rest of it is what comes back.</p>}
      <div class="row">
        <Pick primary={!scan} words={scan ? "Another scan…" : "Choose a scan…"} label="Scan files" pick={(files) => state.bring(files)} />
        {state.changeable.value && <Pick words="Add a view…" label="Files of further views" pick={(files) => state.bring(files, true)} />}
        {!scan && <span class="quiet mouse">or drop it anywhere</span>}
      </div>
      {!scan && <small>Points: PLY, PCD, LAS, XYZ, CSV, NPY, OBJ, STL, GLB. Depth maps: PNG, TIFF, EXR, with a mask and a JSON of the camera beside them. Several files are views of one object.</small>}
      {!scan && <Examples />}
    </section>
  );
}

function Pick({ words, label, primary, pick }: { words: string; label: string; primary?: boolean; pick: (files: File[]) => void }) {
  const input = useRef<HTMLInputElement>(null);
  const picked = () => {
    pick([...(input.current?.files ?? [])]);
    if (input.current) input.current.value = ""; // so that the same file can be picked again
  };
  return (
    <>
      <button class={primary ? "primary" : ""} onClick={() => input.current?.click()}>{words}</button>
      <input ref={input} class="heard" type="file" multiple accept={ACCEPTED} onChange={picked} aria-label={label} aria-hidden="true" tabIndex={-1} />
    </>
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
      {scan.views.length === 1 && <Beside view={scan.views[0]} />}
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
