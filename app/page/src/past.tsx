// The list of this browser's completions.

import { past } from "./history";
import * as state from "./state";

export function History() {
  if (past.value.length === 0) return null;
  return (
    <section class="card" aria-labelledby="past-title">
      <h2 id="past-title">Yours so far</h2>
      <ul class="past">
        {past.value.map((item) => (
          <li key={item.id} class={state.job.value?.id === item.id ? "open" : ""}>
            <button class="entry" onClick={() => state.reopen(item)} aria-current={state.job.value?.id === item.id ? "true" : undefined}>
              {item.picture ? <img src={item.picture} alt="" width="44" height="44" /> : <span class="blank" aria-hidden="true" />}
              <span><strong>{item.name}</strong><small>{item.status} · {when(item.at)} · {item.model}</small></span>
            </button>
            <button class="icon-button" aria-label={`Delete ${item.name}`} onClick={() => confirm(`Delete ${item.name}, its scan and its mesh, here and on the service?`) && state.discard(item)}>×</button>
          </li>
        ))}
      </ul>
      <small>Kept in this browser alone.</small>
    </section>
  );
}

function when(at: string): string {
  const time = new Date(at);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString(undefined, { timeStyle: "short" }) : time.toLocaleDateString(undefined, { dateStyle: "medium" });
}
