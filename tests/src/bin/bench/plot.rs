//! Bars on a logarithmic scale, as SVG: contenders differ by orders of magnitude.

use std::fmt::Write as _;

use crate::statistics::Spread;

/// Of the contenders, in their order. They differ in lightness too, for those who cannot tell the hues.
pub const COLOURS: [&str; 6] = ["#a0a0a0", "#8fb4dd", "#1f5aa0", "#e69128", "#6eb478", "#5a3c8c"];

const WIDTH: f64 = 1060.0;
const HEIGHT: f64 = 280.0;
/// Where the axes are.
const LEFT: f64 = 62.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = HEIGHT - 26.0;

/// The bars of one workload, by contender.
pub struct Group {
    /// Below the bars.
    pub name: &'static str,
    /// A contender without the figure leaves its place empty.
    pub bars: Vec<Option<Spread>>,
}

/// All bars of one figure.
pub struct Plot<'a> {
    pub groups: &'a [Group],
}

impl Plot<'_> {
    /// Draws the plot; `None` when there is nothing to show but zeros.
    pub fn draw(&self) -> Option<String> {
        let scale = Scale::of(self.groups.iter().flat_map(|group| group.bars.iter().flatten()))?;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#222\">\n"
        );
        for power in scale.low..=scale.high {
            let y = scale.y(10f64.powi(power));
            // Writing to a String cannot fail.
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{WIDTH}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                short(10f64.powi(power))
            );
        }
        let width = (WIDTH - LEFT) / self.groups.len() as f64;
        for (i, group) in self.groups.iter().enumerate() {
            self.draw_group(&mut svg, &scale, group, LEFT + width * i as f64, width);
        }
        Some(svg + "</svg>")
    }

    fn draw_group(&self, svg: &mut String, scale: &Scale, group: &Group, left: f64, width: f64) {
        let step = width * 0.9 / group.bars.len() as f64;
        // A few bars need not be as wide as the page.
        let step = step.min(70.0);
        let start = left + (width - step * group.bars.len() as f64) / 2.0;
        let name = group.name;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            left + width / 2.0,
            HEIGHT - 8.0
        );
        for (c, bar) in group.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let (x, y) = (start + step * c as f64, scale.y(bar.median));
            let (from, to) = (scale.y(bar.max), scale.y(bar.min));
            let middle = x + step * 0.45;
            let colour = COLOURS[c % COLOURS.len()];
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
                 <path d=\"M{middle:.1} {from:.1}V{to:.1}\" stroke=\"#222\"/>\
                 <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\">{}</text>",
                step * 0.9,
                (BOTTOM - y).max(0.0),
                from.min(y) - 4.0,
                short(bar.median)
            );
        }
    }
}

/// From the power of ten below the least figure to the one above the greatest.
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn of<'a>(bars: impl Iterator<Item = &'a Spread>) -> Option<Self> {
        let figures = bars.flat_map(|bar| [bar.min, bar.median, bar.max]).filter(|figure| *figure > 0.0);
        let (least, most) = figures.fold((f64::MAX, 0.0), |(least, most), f| (f.min(least), f.max(most)));
        // What is a millionth of the most is nothing.
        let least = least.max(most / 1e6);
        (most > 0.0).then(|| {
            let low = least.log10().floor() as i32;
            Self { low, high: (most.log10().ceil() as i32).max(low + 1) }
        })
    }

    fn y(&self, figure: f64) -> f64 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let share = if figure > 0.0 { ((figure.log10() - low) / (high - low)).max(0.0) } else { 0.0 };
        BOTTOM - share * (BOTTOM - TOP)
    }
}

/// Writes a number in three digits, which are enough for a plot.
fn short(figure: f64) -> String {
    match figure.abs() {
        f if f >= 999_500.0 => format!("{:.1}M", figure / 1e6),
        f if f >= 9_995.0 => format!("{:.0}k", figure / 1e3),
        f if f >= 99.95 => format!("{figure:.0}"),
        f if f >= 9.995 => format!("{:.1}", figure).trim_end_matches(".0").to_owned(),
        0.0 => "0".to_owned(),
        f if f >= 0.995 => format!("{figure:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => format!("{figure:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Spread {
        Spread { median, min: median, max: median }
    }

    #[test]
    fn the_scale_has_room_for_all_figures() {
        let bars = [spread(0.0), spread(3.0), spread(2_000.0)];
        let scale = Scale::of(bars.iter()).unwrap();
        assert_eq!((scale.low, scale.high), (0, 4));
        assert_eq!((scale.y(0.0), scale.y(1.0), scale.y(10_000.0)), (BOTTOM, BOTTOM, TOP));
        assert!(scale.y(100.0) > scale.y(1_000.0));
        assert!(Scale::of([spread(0.0)].iter()).is_none());
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 0.012, 1.0, 2.345, 10.0, 12.34, 123.4, 12_345.0, 2.5e6].map(short);
        assert_eq!(shown, ["0", "0.012", "1", "2.35", "10", "12.3", "123", "12k", "2.5M"]);
    }

    #[test]
    fn an_absent_figure_leaves_its_place_empty() {
        let groups = [Group { name: "calm", bars: vec![None, Some(spread(5.0))] }];
        let svg = Plot { groups: &groups }.draw().unwrap();
        assert_eq!(svg.matches("<rect").count(), 1);
        assert!(svg.contains(COLOURS[1]) && svg.contains("calm"), "{svg}");
    }
}
