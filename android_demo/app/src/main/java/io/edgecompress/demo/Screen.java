package io.edgecompress.demo;

import android.app.Activity;
import android.content.res.ColorStateList;
import android.view.LayoutInflater;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.TextView;

/** The frame of every screen: a title, a way back, and a column that scrolls. */
abstract class Screen extends Activity {
    DemoApp app() {
        return App.of(this);
    }

    /** Shows the frame with a layout in its column. */
    ViewGroup show(CharSequence title, int layout, boolean back) {
        setContentView(R.layout.screen);
        setTitle(title);
        text(R.id.screen_title, title);
        View arrow = findViewById(R.id.back);
        arrow.setVisibility(back ? View.VISIBLE : View.GONE);
        arrow.setOnClickListener(view -> finish());
        ViewGroup content = findViewById(R.id.content);
        if (layout != 0) {
            LayoutInflater.from(this).inflate(layout, content, true);
        }
        return content;
    }

    /** Shows a button beside the title. */
    void action(int text, Runnable action) {
        Button button = findViewById(R.id.screen_action);
        button.setText(text);
        button.setVisibility(View.VISIBLE);
        button.setOnClickListener(view -> action.run());
    }

    int pixels(int dp) {
        return Math.round(dp * getResources().getDisplayMetrics().density);
    }

    TextView text(int id, CharSequence text) {
        TextView view = findViewById(id);
        view.setText(text);
        return view;
    }

    /** Adds a line of text to a column. */
    TextView addText(ViewGroup content, int style, CharSequence text) {
        TextView view = new TextView(this, null, 0, style);
        view.setText(text);
        ViewGroup.MarginLayoutParams place =
                new android.widget.LinearLayout.LayoutParams(
                        ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT);
        place.setMargins(0, pixels(4), 0, pixels(8));
        content.addView(view, place);
        return view;
    }

    /** Shows a verdict in its color. */
    void badge(TextView view, String verdict) {
        int text = R.string.verdict_error;
        int color = R.color.fail;
        int back = R.color.fail_soft;
        switch (verdict) {
            case "pass":
                text = R.string.verdict_pass;
                color = R.color.pass;
                back = R.color.pass_soft;
                break;
            case "fail":
                text = R.string.verdict_fail;
                break;
            case "uncertain":
                text = R.string.verdict_uncertain;
                color = R.color.warn;
                back = R.color.warn_soft;
                break;
            case "not_measured":
                text = R.string.verdict_not_measured;
                color = R.color.warn;
                back = R.color.warn_soft;
                break;
            case "not_applicable":
                text = R.string.verdict_not_applicable;
                color = R.color.neutral;
                back = R.color.neutral_soft;
                break;
            default:
        }
        view.setText(text);
        view.setTextColor(getColor(color));
        view.setBackgroundTintList(ColorStateList.valueOf(getColor(back)));
    }
}
