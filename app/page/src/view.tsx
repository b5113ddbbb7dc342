// The stage with its buttons, and the whole window as a place to drop files on.

import { useEffect, useRef, useState } from "preact/hooks";
import * as state from "./state";

const TURN = Math.PI / 24;

export function View() {
  const place = useRef<HTMLDivElement>(null);
  const [missing, setMissing] = useState(false);
  useEffect(() => {
    state.viewer
      .then(({ Stage }) => place.current && state.mount(new Stage(place.current)))
      .catch(() => setMissing(true));
  }, []);
  const over = useDrop(place);
  return (
    <section class={`stage ${over === "new" ? "over" : ""}`} aria-label="View">
      <div ref={place} class="canvas" role="application" tabIndex={0} aria-label={described()} aria-describedby="view-keys" onKeyDown={press} />
      <p id="view-keys" class="heard">Arrow keys turn it, plus and minus come nearer and go away, zero shows all of it.</p>
      {missing && <p class="hint">This browser has no WebGL, so nothing can be drawn. Completing and downloading work all the same.</p>}
      {!missing && <Hint over={over === "new"} />}
      {over && state.changeable.value && <Halves over={over} />}
      <Toolbar />
      <Legend />
    </section>
  );
}

function Hint({ over }: { over: boolean }) {
  if (over) return state.changeable.value ? null : <p class="hint big">Drop it here</p>;
  if (state.reading.value) return <p class="hint">Reading {state.reading.value}…</p>;
  if (!state.scan.value && !state.job.value) return <p class="hint big"><img src="page/icon.svg" alt="" width="72" height="72" /><span class="mouse">Drop a scan here</span><span class="touch">Your scan appears here</span></p>;
  if (!state.shape.value && !state.scan.value?.points && state.scan.value?.views.some(({ depth }) => depth)) return <p class="hint">Tell the camera's numbers, and its points appear here.</p>;
  return null;
}

function described(): string {
  const points = state.scan.value?.points;
  const parts = [points && `scan of ${points.total} points`, state.shape.value && `mesh of ${Math.round(state.shape.value.faces)} faces`];
  return `3D view: ${parts.filter(Boolean).join(" and ") || "empty"}`;
}

function press(event: KeyboardEvent): void {
  const moves: Record<string, [number, number, number?]> = {
    ArrowLeft: [-TURN, 0],
    ArrowRight: [TURN, 0],
    ArrowUp: [0, TURN],
    ArrowDown: [0, -TURN],
    "+": [0, 0, 0.9],
    "=": [0, 0, 0.9],
    "-": [0, 0, 1 / 0.9],
  };
  const stage = state.stage.value;
  if (!stage || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "0") stage.home();
  else if (moves[event.key]) stage.move(...moves[event.key]);
  else return;
  event.preventDefault();
}

function Toolbar() {
  const shown = state.shown.value;
  const toggle = (name: "scan" | "mesh" | "unsure") => () => (state.shown.value = { ...shown, [name]: !shown[name] });
  if (!state.scan.value && !state.shape.value) return null;
  return (
    <div class="toolbar" role="toolbar" aria-label="What is shown">
      {state.scan.value?.points && !state.way.value && <button aria-pressed={shown.scan} onClick={toggle("scan")}><i class="dot scan" />Scan</button>}
      {state.shape.value && <button aria-pressed={shown.mesh} onClick={toggle("mesh")}><i class="dot mesh" />Mesh</button>}
      {state.shape.value?.deviation && !state.coarse.value && <button aria-pressed={shown.unsure} onClick={toggle("unsure")}><i class="dot unsure" />Uncertainty</button>}
      <button aria-label="Whole view" title="Whole view" onClick={() => state.stage.value?.home()}>⤢</button>
    </div>
  );
}

function Legend() {
  const deviation = state.shape.value?.deviation;
  if (!deviation || !state.shown.value.unsure) return null;
  return (
    <div class="legend" role="img" aria-label={`Colours from blue, sure, to red, ${deviation.largest.toPrecision(2)} or more`}>
      <span>sure</span><i /><span>± {deviation.largest.toPrecision(2)}</span>
    </div>
  );
}

type Over = "" | "new" | "add";

function Halves({ over }: { over: Over }) {
  return (
    <div class="halves" aria-hidden="true">
      <p class={over === "new" ? "here" : ""}>A new scan</p>
      <p class={over === "add" ? "here" : ""}>A further view</p>
    </div>
  );
}

function useDrop(stage: { current: HTMLElement | null }): Over {
  const [over, setOver] = useState<Over>("");
  useEffect(() => {
    // The right half of the stage adds to the scan that is there.
    const meant = ({ clientX, clientY }: DragEvent): Over => {
      const { left, right, top, bottom } = stage.current!.getBoundingClientRect();
      const inside = clientX > (left + right) / 2 && clientX < right && clientY > top && clientY < bottom;
      return inside && state.changeable.value ? "add" : "new";
    };
    const drag = (event: DragEvent) => {
      event.preventDefault();
      setOver(event.type === "dragover" ? meant(event) : "");
    };
    const drop = (event: DragEvent) => {
      drag(event);
      void state.bring([...(event.dataTransfer?.files ?? [])], meant(event) === "add");
    };
    const leave = (event: DragEvent) => event.relatedTarget === null && setOver("");
    addEventListener("dragover", drag);
    addEventListener("drop", drop);
    addEventListener("dragleave", leave);
    return () => {
      removeEventListener("dragover", drag);
      removeEventListener("drop", drop);
      removeEventListener("dragleave", leave);
    };
  }, []);
  return over;
}
