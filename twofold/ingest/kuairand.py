"""Layouts of the KuaiRand short-video data sets, as published."""

from typing import Final

from twofold.ingest.layout import CSV_WITH_HEADER, Layout, SourceFiles, column_types_sql
from twofold.prepare.sources import projection_sql

# Our name → SQL type and expression over the log. `date` and `hourmin` are kept so that exact duplicates are equal in
# every published column: without them, 412 more rows of KuaiRand-Pure's last 14 days would count as duplicates.
EVENTS: Final = {
    "user_id": ("BIGINT", "user_id"),
    "item_id": ("BIGINT", "video_id"),
    "at": ("BIGINT", "time_ms"),
    "clicked": ("BOOLEAN", "is_click"),
    "liked": ("BOOLEAN", "is_like"),
    "followed": ("BOOLEAN", "is_follow"),
    "commented": ("BOOLEAN", "is_comment"),
    "shared": ("BOOLEAN", "is_forward"),
    "disliked": ("BOOLEAN", "is_hate"),
    "long_view": ("BOOLEAN", "long_view"),
    "watch_s": ("DOUBLE", "CAST(play_time_ms AS DOUBLE) / 1000"),
    "length_s": ("DOUBLE", "CAST(duration_ms AS DOUBLE) / 1000"),
    "entered_profile": ("BOOLEAN", "is_profile_enter"),
    "profile_s": ("DOUBLE", "CAST(profile_stay_time AS DOUBLE) / 1000"),
    "comments_s": ("DOUBLE", "CAST(comment_stay_time AS DOUBLE) / 1000"),
    "tab": ("INTEGER", "tab"),
    "date": ("INTEGER", "date"),
    "hourmin": ("INTEGER", "hourmin"),
}
_LOG: Final = (
    "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
)
# The statistic columns of the published items (`show_cnt`, `like_cnt`, …) are left out: they are platform aggregates
# over an unknown period that reaches beyond the log, so as features they would leak the future.
_ITEMS: Final[dict[str, tuple[str, str]]] = {
    "item_id": ("BIGINT", "video_id"),
    "author_id": ("BIGINT", "author_id"),
    "tags": ("VARCHAR[]", "CASE WHEN tag <> 'unknown' THEN STRING_SPLIT(tag, ',') ELSE [] END"),
    "length_s": ("DOUBLE", "CAST(video_duration AS DOUBLE) / 1000"),
    "uploaded_at": ("BIGINT", "EPOCH_MS(CAST(upload_dt AS TIMESTAMP)) - 8 * 3600000"),  # midnight in Beijing
    "upload_type": ("VARCHAR", "upload_type"),
    "video_type": ("VARCHAR", "video_type"),
    "music_id": ("BIGINT", "music_id"),
}
_ITEM_TYPES: Final = {
    "video_id": "BIGINT",
    "author_id": "BIGINT",
    "tag": "VARCHAR",
    "video_duration": "DOUBLE",
    "upload_dt": "VARCHAR",
    "upload_type": "VARCHAR",
    "video_type": "VARCHAR",
    "music_id": "DOUBLE",  # written as 9155697141.0 if any row has none; exact, because far below 2^53
}
SIDE_TABLES: Final = {
    "items": projection_sql(_ITEMS, "videos"),
    "users": "SELECT * REPLACE (CAST(user_id AS BIGINT) AS user_id) FROM raw_users",
}


def kuairand_layouts(suffix: str, *parts: str) -> tuple[Layout, ...]:
    """Returns the layouts as published, with and without the log of randomly exposed videos.

    That log is another experiment, so it becomes another table. `suffix` and `parts` are those of the file names.
    """
    spans = ("4_08_to_4_21", "4_22_to_5_08")
    logs = tuple(f"log_standard_{span}_{suffix}{part}.csv" for span in spans for part in parts)
    log_options = f"{CSV_WITH_HEADER}, types={column_types_sql(dict.fromkeys(_LOG.split(), 'BIGINT'))}"
    item_options = f"{CSV_WITH_HEADER}, types={column_types_sql(_ITEM_TYPES)}"
    files = {
        "standard": SourceFiles(logs, log_options),
        "videos": SourceFiles((f"video_features_basic_{suffix}.csv",), item_options),
        "raw_users": SourceFiles((f"user_features_{suffix}.csv",), f"{CSV_WITH_HEADER}, sample_size=-1"),
    }
    random = {"random": SourceFiles((f"log_random_4_22_to_5_08_{suffix}.csv",), log_options)}
    tables = {"events": projection_sql(EVENTS, "standard"), **SIDE_TABLES}
    random_events = {"random_events": projection_sql(EVENTS, "random")}
    return Layout(files | random, tables | random_events), Layout(files, tables)
