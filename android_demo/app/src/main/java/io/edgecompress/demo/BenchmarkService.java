package io.edgecompress.demo;

import android.app.Notification;
import android.app.NotificationChannel;
import android.app.NotificationManager;
import android.app.PendingIntent;
import android.app.Service;
import android.content.Intent;
import android.os.Build;
import android.os.IBinder;
import android.os.PowerManager;
import io.edgecompress.demo.core.Progress;

/** Keeps the process and the CPU awake while a run goes on, and says so. */
public class BenchmarkService extends Service implements RunManager.Listener {
    private static final String CHANNEL = "runs";
    private static final String CANCEL = "io.edgecompress.demo.CANCEL";
    private static final int ID = 1;
    private static final long LONGEST_MS = 2 * 60 * 60 * 1000L;

    private PowerManager.WakeLock lock;

    @Override
    public void onCreate() {
        super.onCreate();
        if (Build.VERSION.SDK_INT >= 26) {
            NotificationChannel channel =
                    new NotificationChannel(
                            CHANNEL,
                            getString(R.string.channel),
                            NotificationManager.IMPORTANCE_LOW);
            manager().createNotificationChannel(channel);
        }
        startForeground(ID, notification());
        PowerManager power = (PowerManager) getSystemService(POWER_SERVICE);
        if (power != null) {
            lock = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "edgecompress:run");
            lock.acquire(LONGEST_MS);
        }
        App.of(this).runs.listen(this);
    }

    @Override
    public int onStartCommand(Intent intent, int flags, int id) {
        if (intent != null && CANCEL.equals(intent.getAction())) {
            App.of(this).runs.cancel();
        }
        onRunChanged();
        return START_NOT_STICKY;
    }

    @Override
    public void onRunChanged() {
        if (App.of(this).runs.isRunning()) {
            manager().notify(ID, notification());
        } else {
            stopSelf();
        }
    }

    private NotificationManager manager() {
        return (NotificationManager) getSystemService(NOTIFICATION_SERVICE);
    }

    private Notification notification() {
        Progress progress = App.of(this).runs.progress();
        String text = getString(R.string.measuring);
        if (progress != null) {
            text = App.setting(this, progress.kind, progress.threads, progress.xnnpack);
        }
        Intent open = new Intent(this, RunActivity.class).addFlags(Intent.FLAG_ACTIVITY_NEW_TASK);
        Intent cancel = new Intent(this, BenchmarkService.class).setAction(CANCEL);
        int flags = PendingIntent.FLAG_IMMUTABLE;
        Notification.Action stop =
                new Notification.Action.Builder(
                                null,
                                getString(R.string.cancel),
                                PendingIntent.getService(this, 0, cancel, flags))
                        .build();
        return builder()
                .setSmallIcon(R.drawable.ic_mark)
                .setContentTitle(getString(R.string.running_now))
                .setContentText(text)
                .setOngoing(true)
                .setOnlyAlertOnce(true)
                .setProgress(1000, progress == null ? 0 : (int) (1000 * progress.done), false)
                .setContentIntent(PendingIntent.getActivity(this, 0, open, flags))
                .addAction(stop)
                .build();
    }

    @SuppressWarnings("deprecation") // Below API 26 there are no channels.
    private Notification.Builder builder() {
        return Build.VERSION.SDK_INT >= 26
                ? new Notification.Builder(this, CHANNEL)
                : new Notification.Builder(this);
    }

    @Override
    public void onDestroy() {
        App.of(this).runs.unlisten(this);
        if (lock != null && lock.isHeld()) {
            lock.release();
        }
        super.onDestroy();
    }

    @Override
    public IBinder onBind(Intent intent) {
        return null;
    }
}
