// What the components share: numbers, times and durations as people read them. Times come as UTC milliseconds
// and are shown in the browser's own zone; the UTC form goes into the title.

export const MODALITIES = {
  vision: { name: "Picture", icon: "visibility" },
  audio: { name: "Sound", icon: "graphic_eq" },
  sensors: { name: "Sensors", icon: "thermostat" },
};

const TIME = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const DAY_AND_YEAR = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export const time = (ms) => TIME.format(ms);
export const utc = (ms) => new Date(ms).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

const midnight = (ms) => new Date(ms).setHours(0, 0, 0, 0);

export function day(ms, now = Date.now()) {
  const days = Math.round((midnight(now) - midnight(ms)) / 86_400_000);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days > 300 || days < 0 ? DAY_AND_YEAR.format(ms) : DAY.format(ms);
}

export function moment(ms, now = Date.now()) {
  return midnight(ms) === midnight(now) ? time(ms) : `${SHORT_DAY.format(ms)}, ${time(ms)}`;
}

export function duration(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${Math.floor(hours / 24)} days`;
}

export function ago(ms, now = Date.now()) {
  const s = Math.max(0, (now - ms) / 1000);
  if (s < 5) return "just now";
  return `${duration(Math.floor(s) * 1000).replace(/ \d+ (s|min)$/, s < 60 ? "$&" : "")} ago`;
}

export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

// A score near 0 or 1 is told apart where two digits would call it certain.
export function score(value) {
  if (value > 0.9995) return "> 0.999";
  if (value < 0.0005) return "< 0.001";
  return value.toFixed(value > 0.98 || value < 0.02 ? 3 : 2);
}

// Scores are drawn on a logit scale, 0..1 from bottom to top: thresholds lie close to 1, and so do the scores that
// pass them; on a linear scale the two could not be told apart.
const EDGE = 0.002;
const logit = (p) => Math.log(p / (1 - p));
export function height(value) {
  const span = logit(1 - EDGE);
  return (logit(Math.min(1 - EDGE, Math.max(EDGE, value))) + span) / (2 * span);
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return value.toFixed(digits).replace("-", "−");
}

export function offset(seconds) {
  if (Math.abs(seconds) < 0.05) return "onset";
  const size = Math.abs(seconds);
  const text = size < 100 ? `${size.toFixed(size < 10 && size % 1 ? 1 : 0)} s` : `${(size / 60).toFixed(1)} min`;
  return `${seconds < 0 ? "−" : "+"}${text}`;
}

// Keys typed into a field are text, not commands.
export function isTyping(event) {
  const target = event.target;
  return (
    event.ctrlKey || event.metaKey || event.altKey || target.isContentEditable ||
    ["TEXTAREA", "SELECT", "VIDEO"].includes(target.tagName) ||
    (target.tagName === "INPUT" && !["checkbox", "range"].includes(target.type))
  );
}
