"""What an observed service does with OpenTelemetry's SDK, settings from its environment alone. Run in a container in a
guest.

It also claims another's identity, at every level.
"""

from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

CLAIMS = {"ktrdr.instance_id": "another", "ktrdr.environment": "production", "ktrdr.run_id": "another"}
TIMEOUT = 60
resource = Resource.create({"service.name": "in-a-container", **CLAIMS})

tracing = TracerProvider(resource=resource)
tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=TIMEOUT)))
with tracing.get_tracer("lab").start_as_current_span("handle", attributes={"kept": "yes", **CLAIMS}) as span:
    span.add_event("seen", CLAIMS)

reader = PeriodicExportingMetricReader(OTLPMetricExporter(timeout=TIMEOUT))
metering = MeterProvider([reader], resource=resource)
metering.get_meter("lab").create_counter("handled").add(3, {"kept": "yes", **CLAIMS})

logging = LoggerProvider(resource=resource)
logging.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(timeout=TIMEOUT)))
logging.get_logger("lab").emit(LogRecord(body="done", attributes=CLAIMS))

for provider in (tracing, metering, logging):
    provider.shutdown()
print("emitted")
