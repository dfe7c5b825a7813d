// Values as people read them. No DOM here, so that it can be tested anywhere.

export function number(value) {
  return Number(value ?? 0).toLocaleString('en');
}

/** A number and what it counts. */
export function count(value, one, many) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

export function rate(value) {
  if (!(value > 0)) return '0/s';
  return value < 10 ? `${value.toFixed(1)}/s` : `${number(Math.round(value))}/s`;
}

export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let [size, at] = [Number(value ?? 0), 0];
  while (size >= 1024 && at < units.length - 1) [size, at] = [size / 1024, at + 1];
  return at === 0 || size >= 100 ? `${Math.round(size)} ${units[at]}` : `${size.toFixed(1)} ${units[at]}`;
}

export function micros(value) {
  if (value === undefined || value === null) return '–';
  if (value < 1000) return `${Math.round(value)} µs`;
  if (value < 1e6) return `${(value / 1000).toFixed(value < 1e4 ? 1 : 0)} ms`;
  return duration(value / 1000);
}

/** Milliseconds. */
export function duration(millis) {
  if (millis === undefined || millis === null) return '–';
  if (millis < 1000) return `${Math.round(millis)} ms`;
  const seconds = millis / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** RFC 3339 as the clock of whoever looks; with the date where it is not today's. */
export function time(text) {
  const at = new Date(text);
  if (!text || Number.isNaN(at.getTime())) return '–';
  const pad = (value, length = 2) => String(value).padStart(length, '0');
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
  const today = at.toDateString() === new Date().toDateString();
  return today ? clock : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock}`;
}

export function shortened(text, max) {
  const letters = Array.from(String(text ?? ''));
  return letters.length <= max ? letters.join('') : `${letters.slice(0, max - 1).join('')}…`;
}

/** A state in one word, and how it is to be looked at. */
export function tone(state) {
  const good = ['ok', 'connected', 'ready', 'done', 'quiet'];
  const warn = ['degraded', 'connecting', 'starting', 'waiting', 'restarting', 'stopping', 'open'];
  return good.includes(state) ? 'good' : warn.includes(state) ? 'warn' : 'bad';
}

/** Bytes of what is no text that are shown. */
const DUMPED = 4096;
const DUMPED_WIDTH = 8;

/** Base64 as text where it is UTF-8, and as bytes, said to be so, where it is not. */
export function decoded(base64) {
  let raw;
  try {
    raw = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  } catch {
    return base64;
  }
  try {
    return pretty(new TextDecoder('utf-8', { fatal: true }).decode(raw));
  } catch {
    return dump(raw);
  }
}

/** Offsets, bytes and what is ASCII of them, eight in a line, which fits beside a list. */
function dump(raw) {
  const shown = raw.subarray(0, DUMPED);
  const lines = [`(${count(raw.length, 'byte that is', 'bytes that are')} no text${raw.length > DUMPED ? `; the first ${number(DUMPED)}` : ''})`];
  for (let at = 0; at < shown.length; at += DUMPED_WIDTH) {
    const row = [...shown.subarray(at, at + DUMPED_WIDTH)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const letters = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${hex.padEnd(3 * DUMPED_WIDTH - 1)}  ${letters}`);
  }
  return lines.join('\n');
}

/** JSON with its lines, other text as it is. */
export function pretty(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}

/** The body of an observation as text. */
export function body(body) {
  if (!body) return null;
  if ('json' in body) return typeof body.json === 'string' ? body.json : JSON.stringify(body.json, null, 2);
  if ('text' in body) return body.text;
  if ('base64' in body) return decoded(body.base64);
  if ('omitted' in body) return `(${bytes(body.omitted)} that the record does not keep)`;
  return null;
}
