// What is asked for again and again: the pulse of the server for the whole page, and lists for as long as they are shown.

import { get } from './api.js';

/** Pause between two beats, and between two questions of a list. */
const PAUSE = 2000;
/** Pause between the first beat and the second, since there is no rate before. */
const PAUSE_FIRST = 500;
/** Longest pause while the server is not there. */
const PAUSE_MAX = 10_000;

/** Waits, less where `signal` comes before. */
export function pause(millis, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(done, millis);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    }
    signal.addEventListener('abort', done);
  });
}

/** Does `work(signal)` until `signal`, and tells `problem` how it went. Nothing is asked for while nobody looks. */
export async function poll(work, signal, problem, every = PAUSE) {
  let wait = every;
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work(signal);
        problem?.show(null);
        wait = every;
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) return window.dispatchEvent(new CustomEvent('refused', { detail: error }));
        problem?.show(error);
        wait = Math.min(wait * 1.5, PAUSE_MAX);
      }
    }
    await pause(wait, signal);
  }
}

/** The overview every two seconds, for whoever listens. It knows the beat before, of which rates are made. */
export class Pulse extends EventTarget {
  constructor() {
    super();
    this.now = null;
    this.before = null;
    this.error = null;
    this.restarts = 0;
  }

  async run(signal) {
    let wait = PAUSE;
    while (!signal.aborted) {
      try {
        const overview = await get('overview', {}, signal);
        if (this.now && this.now.overview.run !== overview.run) {
          this.restarts += 1;
          this.now = null;
        }
        this.before = this.now;
        this.now = { at: performance.now(), overview };
        this.error = null;
        wait = this.before ? PAUSE : PAUSE_FIRST;
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) return window.dispatchEvent(new CustomEvent('refused', { detail: error }));
        this.before = null;
        this.error = error;
        wait = Math.min(wait * 1.3, PAUSE_MAX);
      }
      this.dispatchEvent(new Event('beat'));
      await pause(wait, signal);
    }
  }

  /** Change a second of what `pick(overview)` counts; `null` where that is not known. */
  rate(pick) {
    if (!this.now || !this.before) return null;
    const [now, before] = [pick(this.now.overview), pick(this.before.overview)];
    const seconds = (this.now.at - this.before.at) / 1000;
    return seconds > 0 && now >= before ? (now - before) / seconds : null;
  }
}

/** Differences of counters between two answers, by key: for rates in tables. It forgets what is not there any more. */
export class Rates {
  constructor() {
    this.before = new Map();
    this.at = null;
  }

  /** The rates of `rows`, whose counter `pick` gives. */
  of(rows, key, pick) {
    const at = performance.now();
    const seconds = this.at === null ? 0 : (at - this.at) / 1000;
    const now = new Map(rows.map((row) => [key(row), pick(row)]));
    const rates = new Map();
    for (const [name, count] of now) {
      const before = this.before.get(name);
      if (before !== undefined && seconds > 0 && count >= before) rates.set(name, (count - before) / seconds);
    }
    [this.before, this.at] = [now, at];
    return rates;
  }
}
