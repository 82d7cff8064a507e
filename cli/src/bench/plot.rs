//! `--plot`: a page that needs nothing else to be looked at: the figures as a table, the distributions as a curve over
//! percentiles, the runs as bars, drawn as SVG inside the page.
//!
//! The horizontal axis of the curve is 1 / (1 − quantile), logarithmic: every further nine takes the same width, as latencies
//! are usually shown, because what matters is at the far end.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::Path;

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::figures::{Curves, Report};
use crate::failure::Failure;
use crate::text::{self, as_f64};

const SIZE: (u32, u32) = (960, 480);
pub(super) const OWN: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
pub(super) const LAST: RGBColor = RGBColor(0xd8, 0x5f, 0x02);
pub(super) const FLOOR: RGBColor = RGBColor(0x66, 0x66, 0x66);

/// Draws the page.
///
/// # Errors
/// The drawing library's.
pub(crate) fn page(report: &Report, curves: &Curves) -> Result<String, Failure> {
    let distribution = svg(|area| draw_distribution(area, curves))?;
    let bars = svg(|area| draw_runs(area, report))?;
    let body = format!(
        "{}{}<h2>Latency by percentile, all runs</h2>\n{distribution}\n<p>{}.</p>\n<h2>The runs</h2>\n{bars}\n",
        paragraph(report),
        table(report),
        escape(report.correction)
    );
    Ok(whole(&format!("consort bench {}", report.bench), &body))
}

/// Sees now whether a file can be written once everything is measured. One that is there stays as it is until then.
///
/// # Errors
/// It can't be.
pub(super) fn writable(path: &Path) -> Result<(), Failure> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map(drop).map_err(|cause| Failure::file("write", path, cause))
}

/// A page that needs no other.
pub(super) fn whole(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\
         body{{font:16px/1.5 sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}}\
         table{{border-collapse:collapse}}td,th{{padding:.2em 1em;text-align:right;border-bottom:1px solid #ddd}}\
         td:first-child,th:first-child{{text-align:left}}svg{{max-width:100%;height:auto}}</style></head><body>\n\
         <h1>{title}</h1>\n{body}</body></html>\n"
    )
}

fn paragraph(report: &Report) -> String {
    format!(
        "<p>{} members, {} sending {}; {} over {} ({}), waiting {}. {} messages/s, {:.3} GB/s; \
         {:.2} CPU-seconds per million messages, {:.2} system calls per message.</p>\n",
        report.members,
        report.senders,
        escape(&text::bytes(report.size as u64)),
        report.guarantee,
        escape(&report.fabric),
        escape(&report.engine),
        report.wait,
        escape(&text::rate(report.msgs_per_s)),
        report.gb_per_s,
        report.cpu_s_per_million,
        report.system_calls_per_message
    )
}

fn table(report: &Report) -> String {
    let mut rows =
        String::from("<table><tr><th></th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr>\n");
    for (name, q) in [("own delivery", &report.latency_us), ("last member", &report.last_member_us)] {
        let cells: String =
            [q.p50, q.p99, q.p999, q.max].map(|us| format!("<td>{}</td>", text::micros(us))).concat();
        let _ = writeln!(rows, "<tr><td>{name}</td>{cells}</tr>");
    }
    let floor = [report.floor.p50_us, report.floor.p99_us]
        .map(|us| format!("<td>{}</td>", text::micros(us)))
        .concat();
    let _ = writeln!(
        rows,
        "<tr><td>floor: {}</td>{floor}<td>–</td><td>–</td></tr></table>\n<p>p50 is {:.2} × the floor's{}.</p>",
        escape(report.floor.latency),
        report.ratio.p50,
        report.ratio.throughput.map_or(String::new(), |ratio| format!(
            "; {ratio:.2} × the messages/s of {}",
            escape(report.floor.throughput)
        ))
    );
    rows
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws a picture to be put into a page.
///
/// # Errors
/// The drawing library's.
pub(super) fn svg(draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Failure> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area).and_then(|()| Ok(area.present()?)).map_err(|e| {
            Failure::lost(format!("can't draw the plot: {e}"), "report this as a bug; --json has the figures")
        })?;
    }
    Ok(svg)
}

/// The points of a curve: 1 / (1 − quantile), and microseconds.
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let total = as_f64(histogram.len());
    // The last value's quantile is 1; it is drawn where the last message but a half would be.
    let end = 2.0 * total;
    histogram
        .iter_quantiles(8)
        .map(|step| {
            let nines = 1.0 / (1.0 - step.quantile_iterated_to().min(1.0 - 1.0 / end.max(2.0)));
            (nines.max(1.0), as_f64(step.value_iterated_to()).max(1.0) / 1e3)
        })
        .collect()
}

pub(super) fn draw_distribution(area: &Area<'_>, curves: &Curves) -> Drawn {
    area.fill(&WHITE)?;
    let series = [
        ("send to own delivery", OWN, points(&curves.own)),
        ("send to delivery at the last member", LAST, points(&curves.last)),
        ("floor", FLOOR, points(&curves.floor)),
    ];
    let all = || series.iter().flat_map(|(_, _, points)| points.iter());
    let right = all().map(|(x, _)| *x).fold(100.0, f64::max);
    let (low, high) = all().fold((f64::MAX, 1.0_f64), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((1.0..right).log_scale(), (low.min(high) * 0.8..high * 1.25).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|us| text::micros(*us))
        .light_line_style(WHITE)
        .draw()?;
    for (name, colour, points) in series {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |at| stroke(at, colour));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// Says which colour is what.
pub(super) fn legend<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
    at: SeriesLabelPosition,
) -> Drawn {
    let mut labels = chart.configure_series_labels();
    Ok(labels.position(at).background_style(WHITE.mix(0.8)).border_style(FLOOR).draw()?)
}

/// The line beside a name in the legend.
pub(super) fn stroke((x, y): (i32, i32), colour: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
}

/// 10 is 90%, 100 is 99%, and so on.
fn percentile(nines: f64) -> String {
    let shown = format!("{:.6}", 100.0 * (1.0 - 1.0 / nines.max(1.0)));
    format!("{}%", shown.trim_end_matches('0').trim_end_matches('.'))
}

fn draw_runs(area: &Area<'_>, report: &Report) -> Drawn {
    area.fill(&WHITE)?;
    let throughput = report.bench == "throughput";
    let pairs: Vec<(f64, f64)> =
        report
            .runs
            .iter()
            .map(|run| {
                if throughput {
                    (run.msgs_per_s, run.floor_msgs_per_s)
                } else {
                    (run.p50_us, run.floor_p50_us)
                }
            })
            .collect();
    let high = pairs.iter().map(|(group, floor)| group.max(*floor)).fold(f64::MIN_POSITIVE, f64::max);
    let label = |value: &f64| if throughput { text::rate(*value) } else { text::micros(*value) };
    let runs = as_f64(pairs.len() as u64);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.5..runs + 0.5, 0.0..high * 1.15)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("run")
        .x_labels(pairs.len())
        .x_label_formatter(&|run| format!("{run:.0}"))
        .y_desc(if throughput { "messages/s" } else { "p50" })
        .y_label_formatter(&label)
        .light_line_style(WHITE)
        .draw()?;
    for (name, colour, left, pick) in [
        ("group", OWN, -0.3, (|pair| pair.0) as fn(&(f64, f64)) -> f64),
        ("floor", FLOOR, 0.02, |pair| pair.1),
    ] {
        let bars = pairs.iter().enumerate().map(|(index, pair)| {
            let at = as_f64(index as u64) + 1.0 + left;
            Rectangle::new([(at, 0.0), (at + 0.28, pick(pair))], colour.filled())
        });
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    legend(&mut chart, SeriesLabelPosition::MiddleRight)
}

#[cfg(test)]
mod tests {
    use super::super::figures::{FloorFigures, Quantiles, Ratio, RunFigures};
    use super::*;
    use crate::args::{GuaranteeArg, WaitArg};
    use crate::latency;

    fn report(bench: &'static str) -> Report {
        let run = RunFigures {
            p50_us: 1.5,
            p99_us: 9.0,
            last_member_p50_us: 2.0,
            msgs_per_s: 600_000.0,
            floor_p50_us: 1.1,
            floor_msgs_per_s: 900_000.0,
        };
        Report {
            bench,
            fabric: "shm".to_string(),
            engine: "futex".to_string(),
            members: 3,
            senders: 1,
            size: 64,
            guarantee: GuaranteeArg::Atomic,
            wait: WaitArg::Adaptive,
            ring_bytes: 4 << 20,
            rate: None,
            messages: 1_000,
            seconds: 2.0,
            msgs_per_s: 600_000.0,
            gb_per_s: 0.0384,
            latency_us: Quantiles { p50: 1.5, p90: 2.0, p99: 9.0, p999: 100.0, max: 4_000.0, mean: 1.7 },
            last_member_us: Quantiles::default(),
            correction: "x < y & z",
            uncorrected_latency_us: Quantiles::default(),
            cpu_s_per_million: 4.0,
            system_calls_per_message: 0.0,
            floor: FloorFigures {
                latency: "a token",
                p50_us: 1.1,
                p99_us: 3.0,
                uncorrected_p50_us: 1.1,
                throughput: "rings",
                msgs_per_s: 900_000.0,
                gb_per_s: 0.06,
            },
            ratio: Ratio { p50: 1.36, uncorrected_p50: 1.3, throughput: Some(0.67) },
            runs: vec![run; 3],
        }
    }

    fn curves() -> Curves {
        let mut own = latency::histogram().unwrap();
        (1..=10_000_u64).for_each(|n| own.record(1_000 + n * n / 1_000).unwrap());
        Curves { last: own.clone(), floor: own.clone(), own }
    }

    #[test]
    fn the_page_stands_alone_and_shows_every_curve() {
        for bench in ["latency", "throughput"] {
            let page = page(&report(bench), &curves()).unwrap();
            assert_eq!(page.matches("<svg").count(), 2);
            assert_eq!(page.matches("</svg>").count(), 2);
            assert!(page.matches("<polyline").count() >= 3, "three curves");
            for text in ["own delivery", "last member", "floor", "99.9%", "x &lt; y &amp; z", "1.36 ×"] {
                assert!(page.contains(text), "{text}");
            }
            let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http") && !elsewhere.contains("src="), "it needs nothing else");
        }
    }

    #[test]
    fn what_was_not_measured_is_drawn_as_nothing() {
        let empty = || latency::histogram().unwrap();
        let curves = Curves { own: empty(), last: empty(), floor: empty() };
        assert!(page(&report("latency"), &curves).is_ok());
    }

    #[test]
    fn a_page_of_before_is_there_until_the_next_is_written() {
        let place = tempfile::tempdir().unwrap();
        let page = place.path().join("page.html");
        writable(&page).unwrap();
        std::fs::write(&page, "of before").unwrap();
        writable(&page).unwrap();
        assert_eq!(std::fs::read_to_string(&page).unwrap(), "of before");
        assert!(writable(&place.path().join("no/such/place")).is_err());
    }

    #[test]
    fn every_nine_is_named() {
        assert_eq!(percentile(1.0), "0%");
        assert_eq!(percentile(10.0), "90%");
        assert_eq!(percentile(1_000.0), "99.9%");
        assert_eq!(percentile(1e5), "99.999%");
    }
}
