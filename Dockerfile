# The image of every Dialin service in docker-compose.yml: workers, the server and one-off commands.
# The registry's torch is the CUDA build, which also runs on a CPU: one image serves both.
FROM python:3.11-slim

# A new named volume takes over the owner of the folder that it is mounted on.
RUN useradd --create-home --uid 1000 dialin && install -d -o dialin -g dialin /files /data

WORKDIR /opt/dialin
# Dependencies first: a change of our own code does not download torch again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*p['dependencies'], *p['optional-dependencies']['server'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt -c constraints.txt \
    && rm /tmp/requirements.txt
COPY README.md LICENSE ./
COPY storage ./storage
COPY search ./search
COPY objectives ./objectives
RUN pip install --no-cache-dir '.[server]' -c constraints.txt

USER dialin
WORKDIR /home/dialin
ENV DIALIN_FILES=/files \
    DIALIN_DATA=/data
ENTRYPOINT ["dialin"]
CMD ["--help"]
