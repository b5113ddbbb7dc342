// A control with its label, and maybe a word of help.

import type { ComponentChildren } from "preact";

export function Field({ label, help, children }: { label: string; help?: string; children: ComponentChildren }) {
  return <label class="field"><span>{label}</span>{children}{help && <small>{help}</small>}</label>;
}
