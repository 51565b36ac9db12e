// The loss curve: training and validation loss over the epochs, in nats on the
// left and bits on the right.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

import type { Curves } from "./loss_history";

/** Height of a chart of this width, in pixels. */
const heightOf = (width: number) => Math.round(Math.min(400, Math.max(240, width * 0.55)));

/** Distances between the marks of the axis of epochs. */
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];

export function Chart({ curves, label }: { curves: Curves; label: string }) {
  const element = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  /** What is drawn, also after a change of the colours. */
  const current = useRef(curves);
  current.current = curves;

  useEffect(() => {
    const parent = element.current;
    if (!parent) return;
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(parent.clientWidth, current), data(current.current), parent);
    };
    draw();
    const resized = new ResizeObserver(() => {
      const width = parent.clientWidth;
      if (width > 0) plot.current?.setSize({ width, height: heightOf(width) });
    });
    resized.observe(parent);
    // The colours of the axes are drawn, so they do not follow the mode alone.
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", draw);
      plot.current?.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(data(curves)), [curves]);

  return <div class="chart" ref={element} role="img" aria-label={label} />;
}

function data(curves: Curves): uPlot.AlignedData {
  return [curves.x, curves.step, curves.train, curves.validation];
}

function options(width: number, current: { readonly current: Curves }): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 } };
  return {
    width,
    height: heightOf(width),
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false } },
    axes: [
      { ...axis, label: "epoch", labelSize: 20, incrs: WHOLE },
      { ...axis, label: "nats per character", labelSize: 20, size: 46 },
      {
        ...axis,
        grid: { show: false },
        side: 1,
        scale: "y",
        label: "bits per character",
        labelSize: 20,
        size: 46,
        values: (_, values) => values.map((value) => (value / Math.LN2).toFixed(2)),
      },
    ],
    series: [
      {},
      { stroke: color("--faint"), width: 1, spanGaps: true, points: { show: false } },
      { stroke: color("--accent"), width: 2, spanGaps: true, points: { show: true, size: 5 } },
      { stroke: color("--second"), width: 2, spanGaps: true, points: { show: true, size: 5 } },
    ],
    hooks: {
      draw: [
        (chart) => {
          const { bestEpoch } = current.current;
          if (bestEpoch === undefined) return;
          const { ctx, bbox } = chart;
          const x = chart.valToPos(bestEpoch, "x", true);
          ctx.save();
          ctx.strokeStyle = color("--second");
          ctx.setLineDash([5, 5]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.restore();
        },
      ],
    },
  };
}
