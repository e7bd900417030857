// The alert list. Rows come whole; the server then sends only what changed through `merge`, so that nothing
// reloads, nothing flickers and the place where somebody reads stays where it is.
import { MODALITIES, day, duration, height, isTyping, moment, score, signed, time, utc } from "tectum";

const VERDICTS = { r: "real", f: "false", u: "unsure" };
const VERDICT_ICONS = { real: "check_circle", false: "cancel", unsure: "help" };

export default {
  template: `
  <transition-group tag="ol" name="row" class="alerts" aria-label="Alerts, newest first">
    <li v-for="item in items" :key="item.key" :class="item.heading ? 'day' : ['alert', item.phase, {fresh: fresh[item.id], chosen: item.id === chosen, judged: item.verdict}]" :data-id="item.id">
      <h2 v-if="item.heading">{{ item.heading }}</h2>
      <template v-else>
        <div class="thumb"><img v-if="item.thumb && !broken[item.id]" :src="item.thumb" alt="" loading="lazy" decoding="async" @error="broken[item.id] = true"><q-icon v-else :name="item.icon"/></div>
        <div class="what">
          <a class="title" :href="item.href"><q-icon :name="item.icon"/><span>{{ item.title }}</span></a>
          <span class="badges">
            <span v-if="item.phase === 'live'" class="badge live">live</span>
            <span v-if="item.phase === 'aborted'" class="badge" title="The device restarted while this alert was open">cut off</span>
            <span v-if="item.calibrating" class="badge" title="The scene is still learning what is normal">calibrating</span>
            <span v-if="item.rule" class="badge" title="Opened by a rule, not by the model">rule</span>
          </span>
          <span class="where"><b>{{ item.scene }}</b> · {{ item.device }}</span>
        </div>
        <div class="why" :title="words(item)">
          <span v-if="mix(item).length" class="mix" role="img" :aria-label="words(item)"><i v-for="part in mix(item)" :key="part.key" :class="[part.key, {negative: part.value < 0}]" :style="{flexGrow: Math.abs(part.value)}"></i></span>
          <span class="lead" :class="lead(item)?.key"><template v-if="lead(item)"><q-icon :name="lead(item).icon"/>{{ lead(item).name }}</template><template v-else>{{ item.rule ? 'rule' : '' }}</template></span>
        </div>
        <div class="peak" :title="'Peak score ' + score(item.peak) + ', threshold ' + score(item.threshold)"><b>{{ score(item.peak) }}</b><span class="gauge"><i :style="{width: height(item.peak) * 100 + '%'}"></i><s :style="{left: height(item.threshold) * 100 + '%'}"></s></span></div>
        <div class="when"><time :datetime="iso(item.at)" :title="utc(item.at) + (item.unsynced ? ' (clock not synchronised)' : '')">{{ clock(item.at) }}<span v-if="item.unsynced" class="dim" aria-label="clock not synchronised">≈</span></time><span class="dim">{{ item.phase === 'live' ? 'for ' + length(now - item.at) : item.ended ? length(item.ended - item.at) : '' }}</span></div>
        <div class="said"><span v-if="item.verdict" class="verdict" :class="item.verdict"><q-icon :name="icons[item.verdict]"/>{{ item.verdict }}</span><span v-else class="verdict open">to review</span></div>
      </template>
    </li>
  </transition-group>`,
  props: { rows: Array, query: { type: String, default: "" }, limit: { type: Number, default: 50 } },
  emits: ["judge"],
  data() {
    return { list: this.rows, fresh: {}, broken: {}, chosen: null, now: Date.now(), icons: VERDICT_ICONS };
  },
  computed: {
    live() {
      return this.list.filter((row) => row.phase === "live").length;
    },
    items() {
      const items = [];
      let last = null;
      for (const row of this.list) {
        const heading = day(row.at, this.now);
        if (heading !== last) items.push({ key: heading, heading });
        last = heading;
        items.push({ ...row, key: row.id, href: `/alert/${row.id}${this.query}` });
      }
      return items;
    },
  },
  watch: {
    rows(rows) {
      this.list = rows;
    },
    live: {
      immediate: true,
      handler(live) {
        // Seen on the tab while somebody works elsewhere.
        document.title = document.title.replace(/^(\(\d+\) )?/, live ? `(${live}) ` : "");
      },
    },
  },
  mounted() {
    this.clockwork = setInterval(() => (this.now = Date.now()), 1000);
    window.addEventListener("keydown", this.key);
  },
  unmounted() {
    clearInterval(this.clockwork);
    window.removeEventListener("keydown", this.key);
  },
  methods: {
    utc,
    score,
    height,
    clock: time,
    moment,
    length: duration,
    iso: (ms) => new Date(ms).toISOString(),
    merge(changed, gone) {
      const byId = new Map(this.list.map((row) => [row.id, row]));
      for (const id of gone) byId.delete(id);
      for (const row of changed) {
        if (!byId.has(row.id)) this.highlight(row.id);
        delete this.broken[row.id];
        byId.set(row.id, row);
      }
      this.list = [...byId.values()].sort((a, b) => b.at - a.at || (a.id < b.id ? 1 : -1)).slice(0, this.limit);
    },
    highlight(id) {
      this.fresh[id] = true;
      setTimeout(() => delete this.fresh[id], 6000);
    },
    parts(item) {
      return Object.entries(MODALITIES).map(([key, known]) => ({
        key, ...known, value: item.shares[key] ?? 0, present: item.present.includes(key),
      }));
    },
    mix(item) {
      return this.parts(item).filter((part) => part.present && Math.abs(part.value) > 0.005);
    },
    lead(item) {
      const best = this.mix(item).sort((a, b) => b.value - a.value)[0];
      return best && best.value > 0 ? best : null;
    },
    words(item) {
      return this.parts(item).map((p) => `${p.name} ${p.present ? signed(p.value) : "missing"}`).join(", ");
    },
    choose(step) {
      if (!this.list.length) return;
      const at = this.list.findIndex((row) => row.id === this.chosen);
      const next = at < 0 ? 0 : Math.min(this.list.length - 1, Math.max(0, at + step));
      this.chosen = this.list[next].id;
      this.$nextTick(() => {
        const row = this.$el.querySelector(`[data-id="${this.chosen}"]`);
        row?.scrollIntoView({ block: "nearest" });
        row?.querySelector("a").focus({ preventScroll: true });
      });
    },
    key(event) {
      if (isTyping(event)) return;
      if (event.key === "j") this.choose(1);
      else if (event.key === "k") this.choose(-1);
      else if (VERDICTS[event.key] && this.chosen) this.$emit("judge", { id: this.chosen, verdict: VERDICTS[event.key] });
      else return;
      event.preventDefault();
    },
  },
};
