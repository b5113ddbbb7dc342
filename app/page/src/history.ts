// The completions that this browser has asked for, newest first. They live in its local storage alone.

import { signal } from "@preact/signals";
import type { Status } from "./api";

export interface Past {
  id: string;
  name: string;
  model: string;
  status: Status;
  at: string; // ISO time
  picture?: string; // data URL
}

const KEY = "deepsdf.history";
const KEPT = 24;

export const past = signal<Past[]>(load());

function load(): Past[] {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]");
  } catch {
    return [];
  }
}

function keep(list: Past[]): void {
  past.value = list.slice(0, KEPT);
  try {
    localStorage.setItem(KEY, JSON.stringify(past.value));
  } catch {
    // Full or forbidden: the list lasts as long as the page.
  }
}

/** Remember a new completion. */
export const remember = (item: Past): void => keep([item, ...past.value.filter(({ id }) => id !== item.id)]);

/** Note what has become of one; one that is not in the list stays out. */
export const note = (id: string, change: Partial<Past>): void =>
  keep(past.value.map((item) => (item.id === id ? { ...item, ...change } : item)));

/** Take one off the list. */
export const forget = (id: string): void => keep(past.value.filter((item) => item.id !== id));
