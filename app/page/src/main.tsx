// The page, put together.

import { render } from "preact";
import { History } from "./past";
import { ScanCard, OptionsCard } from "./panel";
import { ResultCard, RunCard } from "./result";
import * as state from "./state";
import { View } from "./view";

function Page() {
  return (
    <div class="page">
      <a class="skip" href="#panel">Skip to the controls</a>
      <header class="bar">
        <h1><img src="page/icon.svg" alt="" width="28" height="28" /> Complete a scan</h1>
        <nav aria-label="More"><a href="docs">API</a></nav>
      </header>
      <main>
        <View />
        <div class="panel" id="panel" tabIndex={-1}>
          <Trouble />
          <Key />
          <ScanCard />
          {state.job.value === null && <OptionsCard />}
          <RunCard />
          <ResultCard />
          <History />
        </div>
      </main>
      <Told />
    </div>
  );
}

function Trouble() {
  const trouble = state.trouble.value;
  return (
    <div role="alert">
      {trouble && (
        <section class="card trouble">
          <h2>{trouble.title}</h2>
          <p>{trouble.detail}</p>
          {trouble.code && <p class="quiet"><code>{trouble.code}</code></p>}
          <button class="icon-button close" aria-label="Close this message" onClick={() => (state.trouble.value = null)}>×</button>
        </section>
      )}
    </div>
  );
}

function Key() {
  if (!state.needsKey.value) return null;
  const send = (event: SubmitEvent) => {
    event.preventDefault();
    void state.enterKey(String(new FormData(event.target as HTMLFormElement).get("key") ?? ""));
  };
  return (
    <form class="card" onSubmit={send}>
      <label class="field">
        <span>API key</span>
        <input name="key" type="password" autocomplete="off" required spellcheck={false} />
        <small>Kept until you close this tab, and sent to this service alone.</small>
      </label>
      <button class="primary" type="submit">Use this key</button>
    </form>
  );
}

// What a screen reader is told: what was read, and of a running completion phases, not steps.
function Told() {
  const now = state.job.value?.now;
  const points = state.scan.value?.points?.total;
  const read = state.reading.value ? `Reading ${state.reading.value}` : points ? `Scan of ${points.toLocaleString("en")} points` : "";
  const words = now ? (now.status === "running" ? `Completion: ${now.phase}` : `Completion ${now.status}`) : read;
  return <p class="heard" role="status">{words}</p>;
}

const place = document.getElementById("page")!;
place.replaceChildren();
render(<Page />, place);
void state.start();
