// Everything that was measured, on one time axis: seconds from the onset. Tracks are
//   {kind: "score", title, points: [[t, value]], threshold}          values 0..1
//   {kind: "line", title, unit, points: [[t, value]], held: bool}    any scale; `held` draws steps
//   {kind: "image", title, src, from, to, note}                      a picture stretched over its span
// Pointing shows the values of that moment in every track; a click moves the clip there.
import { height, number, offset, score as scoreText } from "tectum";

const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];

function nearest(points, t) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < t) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - t) <= Math.abs(points[high][0] - t) ? points[low] : points[high];
}

export default {
  template: `
  <div class="tracks" ref="root" :class="{seekable: clip}" @pointermove="point" @pointerleave="at = null" @click="seek">
    <div class="tracks-span" :style="{left: x(span.from), width: w(span.from, span.to)}" aria-hidden="true"></div>
    <div v-for="track in shapes" :key="track.key" class="track" :class="track.kind" role="img" :aria-label="track.words">
      <div class="track-head"><span class="track-title" :title="track.title"><q-icon v-if="track.icon" :name="track.icon"/>{{ track.title }}</span><span class="track-value">{{ readout(track) }}</span></div>
      <div class="track-plot">
        <template v-if="track.kind === 'image'">
          <img v-if="track.src" :src="track.src" alt="" :style="{left: share(track.from) * 100 + '%', width: (share(track.to) - share(track.from)) * 100 + '%'}">
          <div v-else class="waiting"><q-icon name="hourglass_top"/><span>{{ track.note }}</span></div>
        </template>
        <template v-else>
          <svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">
            <defs v-if="track.clip"><clipPath :id="track.clip"><rect x="0" y="-5" width="1000" :height="track.cut + 5"/></clipPath></defs>
            <path v-if="track.area && track.clip" class="area hot" :d="track.area" :clip-path="'url(#' + track.clip + ')'"/>
            <path v-if="track.area" class="area" :d="track.area"/>
            <line v-for="at in track.grid" :key="at" class="grid" x1="0" x2="1000" :y1="at" :y2="at"/>
            <line v-if="track.cut !== null" class="threshold" x1="0" x2="1000" :y1="track.cut" :y2="track.cut"/>
            <path class="line" :d="track.line"/>
            <path v-if="track.clip" class="line hot" :d="track.line" :clip-path="'url(#' + track.clip + ')'"/>
          </svg>
          <span v-for="tick in track.labels" :key="tick.text" class="track-tick" :style="{top: tick.at + '%'}">{{ tick.text }}</span>
          <span v-if="track.cut !== null" class="track-threshold" :class="{below: track.cut < 22}" :style="{top: track.cut + '%'}">threshold {{ scoreText(track.threshold) }}</span>
          <span v-if="dot(track)" class="track-dot" :style="dot(track)"></span>
        </template>
      </div>
    </div>
    <div class="tracks-axis" aria-hidden="true"><span v-for="t in ticks" :key="t" :class="{zero: t === 0}" :style="{left: x(t)}">{{ label(t) }}</span></div>
    <div class="tracks-overlay" aria-hidden="true">
      <div v-for="mark in marks" :key="mark.label" class="mark" :class="mark.kind" :style="{left: x(mark.t)}"><span>{{ mark.label }}</span></div>
      <div v-if="at !== null" class="cursor" :style="{left: x(at)}"><span>{{ label(at) }}</span></div>
      <div v-if="clock !== null" class="playhead" :style="{left: x(clock)}"></div>
    </div>
  </div>`,
  props: { domain: Object, span: Object, tracks: Array, marks: Array, clip: Boolean },
  data: () => ({ at: null, clock: null }),
  computed: {
    shapes() {
      return this.tracks.map((track, index) => this.shape(track, index));
    },
    ticks() {
      const width = this.domain.to - this.domain.from;
      const most = window.innerWidth < 600 ? 5 : 9;
      const step = STEPS.find((size) => width / size <= most) ?? width / most;
      const ticks = [];
      for (let t = Math.ceil(this.domain.from / step) * step; t <= this.domain.to + 1e-9; t += step) ticks.push(t + 0);
      return ticks;
    },
  },
  mounted() {
    window.addEventListener("tectum-clock", this.tick);
  },
  unmounted() {
    window.removeEventListener("tectum-clock", this.tick);
  },
  methods: {
    label: offset,
    scoreText,
    tick(event) {
      this.clock = event.detail >= this.domain.from && event.detail <= this.domain.to ? event.detail : null;
    },
    share(t) {
      return Math.min(1, Math.max(0, (t - this.domain.from) / (this.domain.to - this.domain.from || 1)));
    },
    x(t) {
      return `calc(var(--gutter) + (100% - var(--gutter)) * ${this.share(t).toFixed(5)})`;
    },
    w(from, to) {
      return `calc((100% - var(--gutter)) * ${(this.share(to) - this.share(from)).toFixed(5)})`;
    },
    shape(track, index) {
      if (track.kind === "image") return { ...track, key: index, words: `${track.title}: picture over time` };
      const values = track.points.map((p) => p[1]);
      const { y, labels, grid } = track.kind === "score" ? this.scoreScale() : this.valueScale(values);
      let line = "";
      let last = null;
      for (const [t, value] of track.points) {
        const px = (this.share(t) * 1000).toFixed(2);
        const py = y(value).toFixed(2);
        line += last === null ? `M${px} ${py}` : track.held ? `H${px}V${py}` : `L${px} ${py}`;
        last = px;
      }
      const first = track.points.length ? (this.share(track.points[0][0]) * 1000).toFixed(2) : 0;
      const cut = track.threshold === undefined ? null : y(track.threshold);
      return {
        ...track, key: index, line, cut, y, labels, grid,
        area: last === null ? "" : `${line}L${last} 100L${first} 100Z`,
        clip: cut === null ? null : `over-${this.$.uid}-${index}`,
        words: this.words(track, values),
      };
    },
    scoreScale() {
      const y = (value) => 97 - height(value) * 94;
      const ticks = [0.99, 0.9, 0.5, 0.1, 0.01];
      return { y, labels: ticks.map((value) => ({ at: y(value), text: `${value}` })), grid: ticks.map(y) };
    },
    valueScale(values) {
      let low = Math.min(...values);
      let high = Math.max(...values);
      const flat = high - low < 1e-9;
      // A scale that hugged its values would make the noise of a steady sensor look like an event.
      const least = Math.max(Math.abs(high), Math.abs(low)) * 0.15 || 1;
      if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
      const y = (value) => 92 - ((value - low) / (high - low)) * 84;
      const labels = flat ? [] : [{ at: 13, text: number(high) }, { at: 87, text: number(low) }];
      return { y, labels, grid: [] };
    },
    words(track, values) {
      if (!values.length) return `${track.title}: nothing was recorded`;
      const top = Math.max(...values);
      const when = offset(track.points[values.indexOf(top)][0]);
      const unit = track.unit ? ` ${track.unit}` : "";
      const said = track.kind === "score" ? scoreText : number;
      return `${track.title} over time: lowest ${said(Math.min(...values))}${unit}, highest ${said(top)}${unit} at ${when}`;
    },
    moment(track) {
      const t = this.at ?? this.clock;
      return t === null || !track.points?.length ? null : nearest(track.points, t);
    },
    readout(track) {
      if (track.kind === "image") return track.unit ?? "";
      if (!track.points.length) return "no data";
      const here = this.moment(track);
      if (track.kind === "score") {
        return here ? scoreText(here[1]) : `peak ${scoreText(Math.max(...track.points.map((p) => p[1])))}`;
      }
      const value = (here ?? track.points.at(-1))[1];
      if (track.unit === "0/1") return value >= 0.5 ? "on" : "off";
      return `${number(value)}${track.unit ? ` ${track.unit}` : ""}`;
    },
    dot(track) {
      const here = track.y && this.moment(track);
      return here ? { left: `${this.share(here[0]) * 100}%`, top: `${track.y(here[1])}%` } : null;
    },
    where(event) {
      const box = this.$refs.root.getBoundingClientRect();
      const gutter = parseFloat(getComputedStyle(this.$refs.root).getPropertyValue("--gutter")) || 0;
      const share = (event.clientX - box.left - gutter) / (box.width - gutter);
      return share < 0 ? null : this.domain.from + Math.min(1, share) * (this.domain.to - this.domain.from);
    },
    point(event) {
      this.at = this.where(event);
    },
    seek(event) {
      const t = this.where(event);
      if (this.clip && t !== null) window.dispatchEvent(new CustomEvent("tectum-seek", { detail: t }));
    },
  },
};
