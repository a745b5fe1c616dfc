//! The page: a plot for each figure that contenders are compared by, and the tables. One file, which needs no network.

use crate::{
    measure::Sample,
    plot::{COLOURS, Group, Plot},
    statistics::{Results, Spread, machine},
    table::{self, Section},
    workload::Pace,
};

/// One figure of all workloads that have it.
struct Figure {
    title: &'static str,
    unit: &'static str,
    of: fn(&Results, usize, usize) -> Option<Spread>,
}

const FIGURES: [Figure; 7] = [
    Figure {
        title: "CPU time of the whole machine per mirrored request, beyond no mirror",
        unit: "µs",
        of: Results::beyond,
    },
    Figure {
        title: "CPU time of the source's process per request",
        unit: "µs",
        of: |r, w, c| r.spread(w, c, |s| s.source),
    },
    Figure {
        title: "Live throughput of closed loops",
        unit: "requests/s",
        of: |r, w, c| r.spread(w, c, |s| Some(s.throughput)).filter(|_| r.workloads[w].pace == Pace::Closed),
    },
    Figure {
        title: "Live latency, 99th percentile, at fixed rates",
        unit: "ms",
        of: |r, w, c| r.spread(w, c, latency_p99).filter(|_| r.workloads[w].fixed_rate().is_some()),
    },
    Figure {
        title: "Replay lag, 99th percentile, at fixed rates",
        unit: "µs",
        of: |r, w, c| r.spread(w, c, lag_p99).filter(|_| r.workloads[w].fixed_rate().is_some()),
    },
    Figure {
        title: "Live latency, 99th percentile, at twice the rate that the machine sustains",
        unit: "ms",
        of: |r, w, c| r.spread(w, c, latency_p99).filter(|_| overloaded(r, w)),
    },
    Figure {
        title: "Requests lost, at twice the rate that the machine sustains",
        unit: "%",
        of: |r, w, c| r.spread(w, c, lost).filter(|_| overloaded(r, w)),
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

const STYLE: &str = "\
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em; color: #222 }\n\
    h2 { font-size: 1.1em; margin: 2em 0 .3em } svg { max-width: 100%; height: auto }\n\
    .legend { position: sticky; top: 0; background: #fff; padding: .5em 0; margin: 0 }\n\
    .legend span { display: inline-block; width: 1em; height: 1em; margin: 0 .4em 0 1.2em; vertical-align: -2px }\n\
    .wide { overflow-x: auto } table { border-collapse: collapse; font-size: 12px; white-space: nowrap }\n\
    th, td { padding: .2em .45em; text-align: right; border-bottom: 1px solid #ddd }\n\
    th:first-child, td:first-child { text-align: left } .note { font-size: 13px; color: #555 }\n";

/// Renders the page as HTML.
pub fn render(results: &Results) -> String {
    let mut plots = String::new();
    for figure in &FIGURES {
        if let Some(svg) = figure.draw(results) {
            plots += &format!("<h2>{}, {}</h2>\n{svg}\n", figure.title, figure.unit);
        }
    }
    let legend: String = results
        .contenders
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|(contender, colour)| format!("<span style=\"background:{colour}\"></span>{}\n", escape(contender.name())))
        .collect();
    let tables: String = table::sections(results).iter().map(html).collect();
    let columns = if results.workloads.is_empty() { "" } else { table::COLUMNS };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>tcpcopy: what mirroring costs</title>\n\
         <style>\n{STYLE}</style>\n<h1>What mirroring costs</h1>\n\
         <p>{}. Bars are medians of the rounds, on a logarithmic scale; whiskers show the least and the most.</p>\n\
         <p class=\"legend\">{legend}</p>\n{plots}{tables}<p class=\"note\">{}</p>\n</html>\n",
        escape(&machine()),
        escape(columns),
    )
}

/// Renders a table as HTML.
fn html(section: &Section) -> String {
    let row = |cells: Vec<String>, tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let contents = |row: &comfy_table::Row| row.cell_iter().map(comfy_table::Cell::content).collect::<Vec<_>>();
    let head = section.table.header().map_or_else(String::new, |header| row(contents(header), "th"));
    let body: String = section.table.row_iter().map(|cells| row(contents(cells), "td")).collect();
    let note = escape(&section.note);
    let title = escape(&section.title);
    format!("<h2>{title}</h2>\n<div class=\"wide\"><table>\n{head}{body}</table></div>\n<p class=\"note\">{note}</p>\n")
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Figure {
    /// Draws the plot; `None` when no workload has the figure.
    fn draw(&self, results: &Results) -> Option<String> {
        let groups: Vec<Group> = (0..results.workloads.len())
            .map(|w| Group {
                name: results.workloads[w].name,
                bars: (0..results.contenders.len()).map(|c| (self.of)(results, w, c)).collect(),
            })
            .filter(|group| group.bars.iter().any(Option::is_some))
            .collect();
        Plot { groups: &groups }.draw()
    }
}
