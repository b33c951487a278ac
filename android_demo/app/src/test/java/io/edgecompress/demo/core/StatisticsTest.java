package io.edgecompress.demo.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import java.util.Random;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Test;

public class StatisticsTest {
    /** numpy.percentile([10, 20, 30, 40, 100], [5, 50, 90, 95]) and friends. */
    @Test
    public void agreesWithNumpy() {
        Statistics all = new Statistics(new double[] {30, 10, 100, 20, 40});
        assertEquals(12.0, all.percentile(5), 1e-12);
        assertEquals(30.0, all.median(), 1e-12);
        assertEquals(76.0, all.percentile(90), 1e-12);
        assertEquals(88.0, all.percentile(95), 1e-12);
        assertEquals(40.0, all.mean(), 1e-12);
        assertEquals(31.622776601683793, all.std(), 1e-12);
        assertEquals(10.0, all.min(), 0);
        assertEquals(100.0, all.max(), 0);
    }

    @Test
    public void oneSampleIsItsOwnStatistics() {
        Statistics one = new Statistics(new double[] {7});
        assertArrayEquals(
                new double[] {7, 7, 7, 0},
                new double[] {one.percentile(5), one.percentile(95), one.mean(), one.std()},
                0);
    }

    @Test
    public void spreadIsOfSlowestAndFastest() {
        assertEquals(25.0, Statistics.spreadPercent(new double[] {10, 8, 9}), 1e-9);
        assertEquals(0.0, Statistics.spreadPercent(new double[] {3, 3}), 0);
    }

    @Test
    public void histogramHoldsEverySample() throws Exception {
        Random random = new Random(1);
        double[] samples = new double[997];
        for (int i = 0; i < samples.length; i++) {
            samples[i] = 100 + random.nextDouble() + (i % 100 == 0 ? 5000 : 0);
        }
        JSONObject histogram = new Statistics(samples).histogram();
        JSONArray counts = histogram.getJSONArray("counts");
        JSONArray edges = histogram.getJSONArray("edges");
        assertEquals(counts.length() + 1, edges.length());
        int sum = 0;
        for (int i = 0; i < counts.length(); i++) {
            sum += counts.getInt(i);
        }
        assertEquals(samples.length, sum);
        // The few slow ones are in the last bin and do not flatten the others.
        assertEquals(true, edges.getDouble(edges.length() - 1) < 102);
        assertEquals(true, counts.getInt(counts.length() - 1) >= 10);
    }

    @Test
    public void equalSamplesHaveAHistogram() throws Exception {
        JSONObject histogram = new Statistics(new double[] {2, 2, 2}).histogram();
        assertEquals(3, histogram.getJSONArray("counts").getInt(0));
    }
}
