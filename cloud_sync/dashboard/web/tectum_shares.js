// Share of each modality, signed: a compact bar for lists, or a chart with values (`full`).
import { MODALITIES, signed } from "tectum";

export default {
  template: `
  <div v-if="!full" class="mix" role="img" :aria-label="words" :title="words">
    <span v-for="part in parts" :key="part.key" :class="[part.key, {negative: part.value < 0}]" :style="{flexGrow: part.size}"></span>
    <span v-if="!parts.length" class="none" style="flex-grow: 1"></span>
  </div>
  <div v-else class="shares" role="img" :aria-label="words">
    <div v-for="row in rows" :key="row.key" class="share" :class="[row.key, {missing: !row.present}]">
      <span class="share-name"><q-icon :name="row.icon"/>{{ row.name }}</span>
      <span class="share-bar"><i :class="{negative: row.value < 0}" :style="row.style" v-if="row.present"></i></span>
      <span class="share-value">{{ row.present ? row.text : 'missing' }}</span>
    </div>
  </div>`,
  props: { shares: Object, present: Array, full: Boolean },
  computed: {
    rows() {
      const span = Math.max(1, ...Object.values(this.shares).map(Math.abs));
      return Object.entries(MODALITIES).map(([key, { name, icon }]) => {
        const value = this.shares[key] ?? 0;
        const width = (Math.abs(value) / span) * 50;
        return {
          key, name, icon, value, text: signed(value),
          present: this.present.includes(key),
          style: { width: `${width}%`, left: value < 0 ? `${50 - width}%` : "50%" },
        };
      });
    },
    parts() {
      const all = this.rows.filter((row) => row.present && Math.abs(row.value) > 0.005);
      return all.map(({ key, value }) => ({ key, value, size: Math.abs(value) }));
    },
    words() {
      const said = this.rows.map((row) => `${row.name} ${row.present ? row.text : "missing"}`);
      return `Shares: ${said.join(", ")}`;
    },
  },
};
