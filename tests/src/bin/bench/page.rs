//! The page: the tables, and a plot for each figure that contenders are compared by. One file, which needs no network.

use anyhow::Context as _;
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Color, DrawingArea, DrawingBackend, IntoDrawingArea, IntoSegmentedCoord, PathElement, RGBColor,
        Rectangle, SVGBackend, SegmentValue, WHITE,
    },
};

use crate::{
    measure::Sample,
    statistics::{Results, Spread, machine},
    table,
    workload::Pace,
};

/// One figure of all workloads that have it.
struct Plot {
    title: &'static str,
    unit: &'static str,
    figure: fn(&Results, usize, usize) -> Option<Spread>,
}

const PLOTS: [Plot; 7] = [
    Plot {
        title: "CPU time of the whole machine per mirrored request, beyond no mirror",
        unit: "µs",
        figure: Results::beyond,
    },
    Plot {
        title: "CPU time of the source's process per request",
        unit: "µs",
        figure: |r, w, c| r.spread(w, c, |s| s.source),
    },
    Plot {
        title: "Live throughput of closed loops",
        unit: "1000 requests/s",
        figure: |r, w, c| r.spread(w, c, |s| Some(s.throughput / 1e3)).filter(|_| r.workloads[w].pace == Pace::Closed),
    },
    Plot {
        title: "Live latency, 99th percentile, at fixed rates",
        unit: "ms",
        figure: |r, w, c| r.spread(w, c, latency_p99).filter(|_| r.workloads[w].fixed_rate().is_some()),
    },
    Plot {
        title: "Replay lag, 99th percentile, at fixed rates",
        unit: "µs",
        figure: |r, w, c| r.spread(w, c, lag_p99).filter(|_| r.workloads[w].fixed_rate().is_some()),
    },
    Plot {
        title: "Live latency, 99th percentile, at twice the rate that the machine sustains",
        unit: "ms",
        figure: |r, w, c| r.spread(w, c, latency_p99).filter(|_| overloaded(r, w)),
    },
    Plot {
        title: "Requests lost, at twice the rate that the machine sustains",
        unit: "%",
        figure: |r, w, c| r.spread(w, c, lost).filter(|_| overloaded(r, w)),
    },
];

fn latency_p99(sample: &Sample) -> Option<f64> {
    Some(sample.latency_p99 / 1e3)
}

fn lag_p99(sample: &Sample) -> Option<f64> {
    sample.lag.map(|lag| lag.p99)
}

fn lost(sample: &Sample) -> Option<f64> {
    sample.lost.map(|lost| 100.0 * lost as f64 / sample.requests.max(1) as f64)
}

fn overloaded(results: &Results, workload: usize) -> bool {
    matches!(results.workloads[workload].pace, Pace::Twice(_))
}

/// Of the contenders, in their order. They differ in lightness too, for those who cannot tell the hues.
const COLOURS: [RGBColor; 6] = [
    RGBColor(150, 150, 150),
    RGBColor(31, 90, 160),
    RGBColor(230, 145, 40),
    RGBColor(150, 40, 60),
    RGBColor(110, 180, 120),
    RGBColor(90, 60, 140),
];

/// The page as HTML.
pub fn render(results: &Results) -> anyhow::Result<String> {
    let mut plots = String::new();
    for plot in &PLOTS {
        if let Some(svg) = plot.draw(results)? {
            plots += &format!("<h2>{}</h2>\n{svg}\n", plot.title);
        }
    }
    let legend: String = results
        .contenders
        .iter()
        .enumerate()
        .map(|(c, contender)| {
            let RGBColor(r, g, b) = COLOURS[c % COLOURS.len()];
            format!("<span style=\"background:rgb({r},{g},{b})\"></span>{}\n", escape(contender.name()))
        })
        .collect();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>tcpcopy: what mirroring costs</title>\n<style>\n\
         body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}\n\
         pre {{ font-size: 12px; overflow-x: auto }} svg {{ max-width: 100%; height: auto }}\n\
         .legend {{ position: sticky; top: 0; background: #fff; padding: .5em 0 }}\n\
         .legend span {{ display: inline-block; width: 1em; height: 1em; margin: 0 .4em 0 1.2em; vertical-align: -2px }}\n\
         </style>\n<h1>What mirroring costs</h1>\n<p>{}. Bars are medians of the rounds; whiskers show the least and the most.</p>\n\
         <p class=\"legend\">{legend}</p>\n{plots}<h2>All figures</h2>\n<pre>{}</pre>\n</html>\n",
        escape(&machine()),
        escape(&table::render(results))
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Plot {
    /// `None` when no workload has the figure.
    fn draw(&self, results: &Results) -> anyhow::Result<Option<String>> {
        let contenders = results.contenders.len();
        let bars: Vec<(usize, Vec<Option<Spread>>)> = (0..results.workloads.len())
            .map(|w| (w, (0..contenders).map(|c| (self.figure)(results, w, c)).collect::<Vec<_>>()))
            .filter(|(_, figures)| figures.iter().any(Option::is_some))
            .collect();
        let top = bars.iter().flat_map(|(_, figures)| figures.iter().flatten().map(|f| f.max)).fold(0.0, f64::max);
        if bars.is_empty() || top <= 0.0 {
            return Ok(None);
        }
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (1060, 360)).into_drawing_area();
            self.draw_bars(&area, results, &bars, top).context("cannot draw a plot")?;
            area.present().context("cannot draw a plot")?;
        }
        Ok(Some(svg))
    }

    fn draw_bars<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        results: &Results,
        bars: &[(usize, Vec<Option<Spread>>)],
        top: f64,
    ) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        // Ten places a workload, so that the bars of its contenders can stand side by side.
        let (groups, places) = (bars.len() as i32, 10);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d((0..groups - 1).into_segmented(), 0.0..top * 1.05)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .y_desc(self.unit)
            .x_labels(bars.len())
            .x_label_formatter(&|value| match value {
                SegmentValue::CenterOf(i) => bars
                    .get(usize::try_from(*i).unwrap_or(usize::MAX))
                    .map_or_else(String::new, |(w, _)| results.workloads[*w].name.to_owned()),
                _ => String::new(),
            })
            .draw()?;
        let plane = chart.plotting_area();
        let (left, right) = (plane.map_coordinate(&(SegmentValue::Exact(0), 0.0)), plane.get_pixel_range().0.end);
        let (width, base) = (f64::from(right - left.0) / f64::from(groups), left.1);
        let step = width * f64::from(places - 2) / f64::from(places) / results.contenders.len() as f64;
        for (i, (_, figures)) in bars.iter().enumerate() {
            for (c, figure) in figures.iter().enumerate() {
                let Some(figure) = figure else { continue };
                let x = f64::from(left.0) + width * (i as f64 + 0.1) + step * c as f64;
                let y = |value: f64| plane.map_coordinate(&(SegmentValue::Exact(0), value.max(0.0))).1;
                let colour = COLOURS[c % COLOURS.len()];
                let (from, to) = (x as i32, (x + step * 0.9) as i32);
                area.draw(&Rectangle::new([(from, y(figure.median)), (to, base)], colour.filled()))?;
                let middle = i32::midpoint(from, to);
                area.draw(&PathElement::new([(middle, y(figure.min)), (middle, y(figure.max))], RGBColor(40, 40, 40)))?;
            }
        }
        Ok(())
    }
}
